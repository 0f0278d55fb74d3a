"""Sizes of float and quantized checkpoints, beside torch's count of what the files hold."""

from __future__ import annotations

from pathlib import Path

import checkpoints
import pytest
import torch
from quantize.decoded import dense_of
from safetensors.torch import load_file, save_file

from chopjax.checkpoint.open import open_to_score
from chopjax.checkpoint.size import size_of
from chopjax.models.formats import Kind
from chopjax.quantize.quantize import quantize_checkpoint


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With zeros in one matrix."""
    folder = tmp_path_factory.mktemp("size") / "parent"
    checkpoints.write_checkpoint(folder, "llama", hidden_size=32, intermediate_size=48)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][:, ::2] = 0
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return checkpoints.write_tokenizer(folder)


def in_file(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return tensors


def test_zeros_are_told_apart(parent: Path) -> None:
    tensors = in_file(parent).values()
    size = size_of(open_to_score(str(parent)))
    assert size.parameters == sum(t.numel() for t in tensors)
    assert size.not_zero == sum(int(t.count_nonzero()) for t in tensors) < size.parameters
    assert size.bytes == sum(t.nbytes for t in tensors)


@pytest.mark.parametrize("kind", ["int8", "int4", "fp8"])
def test_quantized(parent: Path, kind: Kind, tmp_path: Path) -> None:
    quantize_checkpoint(str(parent), tmp_path / "out", kind)
    size = size_of(open_to_score(str(tmp_path / "out")))
    dense = in_file(dense_of(tmp_path / "out", tmp_path / "dense")).values()
    assert size.parameters == size_of(open_to_score(str(parent))).parameters
    assert size.not_zero == sum(int(t.count_nonzero()) for t in dense)
    assert size.bytes == sum(t.nbytes for t in in_file(tmp_path / "out").values())
