"""Checkpoints with a tensor an expert: what is read of them, and what is said of damaged ones."""

from __future__ import annotations

from pathlib import Path

import checkpoints
import jax
import numpy as np
import pytest
import safetensors.numpy

from chopjax.checkpoint.describe import describe
from chopjax.checkpoint.load import load
from chopjax.checkpoint.safetensors_file import TensorInfo
from chopjax.checkpoint.summary import summary
from chopjax.errors import UserError
from chopjax.models import mesh

GATE = "model.layers.{}.block_sparse_moe.experts.{}.w1.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write_checkpoint(tmp_path_factory.mktemp("mixtral"), "mixtral")


def tensors(folder: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(folder / "model.safetensors")


def test_every_tensor_stands_at_its_layer_and_expert(folder: Path) -> None:
    gate = load(str(folder), keep=(1, 3)).params["blocks"]["mlp"]["gate"]
    files = tensors(folder)
    for place, layer in enumerate((1, 3)):
        for expert in range(4):
            name = GATE.format(layer, expert)
            np.testing.assert_array_equal(gate[place, expert], files[name].T)


def test_removed_layers_are_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    before = TensorInfo.read

    def noted(tensor: TensorInfo) -> np.ndarray:
        read.append(tensor.name)
        return before(tensor)

    monkeypatch.setattr(TensorInfo, "read", noted)
    load(str(folder), keep=(2,))
    layers = {name.split(".")[2] for name in read if "layers" in name}
    assert layers == {"2"}
    assert len(read) == len(set(read)), "each tensor once"


def test_shardings(folder: Path) -> None:
    """Experts are whole in number: what is cut is their width and theirs alone."""
    config = describe(str(folder)).config
    found = mesh.specs(config, {"slice": 1, "data": 1, "fsdp": 2, "tensor": 2})
    assert found["blocks/mlp/gate"] == jax.P(None, None, "fsdp", "tensor")
    assert found["blocks/mlp/down"] == jax.P(None, None, "tensor", "fsdp")
    assert found["blocks/mlp/router"] == jax.P(None, "fsdp", None)


def test_summary(folder: Path) -> None:
    about = summary(describe(str(folder)))
    (row,) = [row for row in about["tensors"] if row["parameters"] == ["blocks/mlp/gate"]]
    assert row["name"] == GATE.format("{l}", "{e}")
    assert (row["layers"], row["experts"], row["shape"]) == (4, 4, [56, 32])
    assert row["bytes"] == 4 * 4 * 56 * 32 * 4
    assert about["bytes"] == sum(array.nbytes for array in tensors(folder).values())
    assert about["parameters"]["active"] < about["parameters"]["total"]


def test_an_expert_that_is_missing_and_one_too_many_are_named(folder: Path, tmp_path: Path) -> None:
    files = tensors(folder)
    files[GATE.format(0, 4)] = files.pop(GATE.format(2, 3))
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    safetensors.numpy.save_file(files, tmp_path / "model.safetensors")
    with pytest.raises(UserError) as caught:
        describe(str(tmp_path))
    assert f"missing: {GATE.format(2, 3)} [56, 32]" in str(caught.value)
    assert f"unknown: {GATE.format(0, 4)} [56, 32]" in str(caught.value)
