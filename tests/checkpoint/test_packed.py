"""What `chopjax quantize` wrote, opened to be scored, and what is not quite that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict
from quantize.decoded import dense_of
from safetensors.numpy import load_file, save_file

from chopjax.checkpoint.describe import describe
from chopjax.checkpoint.load import load
from chopjax.checkpoint.open import open_checkpoint, open_to_score
from chopjax.checkpoint.packed import TO_SCORE, Packed
from chopjax.checkpoint.safetensors_file import open_header
from chopjax.checkpoint.source import Found
from chopjax.checkpoint.values import same_bytes
from chopjax.errors import UserError
from chopjax.models.formats import Kind, encode
from chopjax.models.quantized import Quantized
from chopjax.quantize.quantize import quantize_checkpoint
from chopjax.score.model import open_engine

NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    checkpoints.write_checkpoint(
        tmp_path / "m", "llama", hidden_size=64, intermediate_size=96, num_hidden_layers=2
    )
    quantize_checkpoint(str(tmp_path / "m"), tmp_path / "out", "int4")
    return tmp_path / "out"


def test_its_tensors_are_the_parents(folder: Path) -> None:
    found, parent = open_to_score(str(folder)), open_checkpoint(str(folder.with_name("m")))
    shapes = {name: (tensor.dtype, tensor.shape) for name, tensor in parent.tensors.items()}
    assert {name: (t.dtype, t.shape) for name, t in found.tensors.items()} == shapes
    matrix = found.tensors[NAME]
    assert isinstance(matrix, Packed)
    for ours, theirs in zip(matrix.codes(), encode(parent.array(NAME), "int4", 32), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert describe(str(folder), quantized=True).raw_config == found.raw_config


def test_of_the_hub_both_parts_of_a_matrix_are_fetched(folder: Path) -> None:
    header, asked = open_header(folder / "model.safetensors"), list[str]()
    config = json.loads((folder / "config.json").read_text())
    found = Found("a/b", folder, config, header.tensors, header.metadata, "0" * 40, asked.extend)
    TO_SCORE.assemble(found).fetch([NAME, "model.norm.weight"])
    assert sorted(asked) == [f"{NAME}_packed", f"{NAME}_scale", "model.norm.weight"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["int4", "int8", "fp8"])
def test_who_computes_otherwise_reads_the_numbers(
    kind: Kind, dtype: torch.dtype, tmp_path: Path
) -> None:
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    checkpoints.write_checkpoint(tmp_path / "m", "llama", dtype, **sizes)
    quantize_checkpoint(str(tmp_path / "m"), tmp_path / "out", kind)
    found = open_checkpoint(str(tmp_path / "out"))
    dense = open_checkpoint(str(dense_of(tmp_path / "out", tmp_path / "dense")))
    assert (found.decoded, dense.decoded) == (kind, None)
    assert found.raw_config == dense.raw_config
    assert found.tensors.keys() == dense.tensors.keys()
    for name, tensor in dense.tensors.items():
        ours = found.tensors[name]
        assert (ours.dtype, ours.shape, ours.nbytes) == (tensor.dtype, tensor.shape, tensor.nbytes)
        assert same_bytes(found.array(name), np.array(tensor.read())), name
    # Onto the device, too, and as the scorer has them.
    params, theirs = (
        flatten_dict(load(str(tmp_path / name)).params, sep="/") for name in ("out", "dense")
    )
    for path, leaf in theirs.items():
        np.testing.assert_array_equal(np.asarray(params[path]), np.asarray(leaf), path)
    _, engine = open_engine(str(tmp_path / "out"), dtype="float32")
    for path, leaf in flatten_dict(engine.params, sep="/").items():
        if isinstance(leaf, Quantized):
            wide = np.asarray(leaf.kernel(np.float32)).astype(params[path].dtype)
            np.testing.assert_array_equal(wide, np.asarray(params[path]), path)


def test_another_s_words_are_not_read(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["symmetric"] = False
    (folder / "config.json").write_text(json.dumps(config))
    for opened in (open_to_score, open_checkpoint):
        with pytest.raises(UserError, match=r"are quantized .* and not as `chopjax quantize` does"):
            opened(str(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"{NAME}_scale": np.ones((96, 4), np.float32)}, f"{NAME}_scale is [96, 4]"),
        ({f"{NAME}_packed": np.ones((96, 16), np.int32)}, f"{NAME}_scale is [96, 2]"),
        ({f"{NAME}_scale": np.ones(96, np.float32)}, f"{NAME}_packed is I32"),
        ({f"{NAME}_packed": np.ones((96, 8), np.int16)}, f"{NAME}_packed is I16"),
        ({f"{NAME}_scale": None}, f"missing: {NAME}"),
        ({f"{NAME}_packed": None}, f"unknown: {NAME}_scale"),
        (
            {f"{NAME}_packed": None, f"{NAME}_scale": None, f"{NAME}_shape": None}
            | {NAME: np.ones((96, 64), np.float32)},
            f"the other way round:\n  {NAME}",
        ),
    ],
)
def test_what_does_not_fit_is_named(
    change: dict[str, np.ndarray | None], message: str, folder: Path
) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path) | change
    save_file({k: v for k, v in tensors.items() if v is not None}, path, {"format": "pt"})
    with pytest.raises(UserError) as error:
        open_to_score(str(folder))
    assert message in str(error.value)
