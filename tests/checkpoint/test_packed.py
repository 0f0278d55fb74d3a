"""What `chopjax quantize` wrote, opened to be scored, and what is not quite that."""

from __future__ import annotations

import json
from pathlib import Path

import checkpoints
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from chopjax.checkpoint.describe import describe
from chopjax.checkpoint.open import open_checkpoint, open_to_score
from chopjax.checkpoint.packed import TO_SCORE, Packed
from chopjax.checkpoint.safetensors_file import open_header
from chopjax.checkpoint.source import Found
from chopjax.errors import UserError
from chopjax.models.formats import encode
from chopjax.quantize.quantize import quantize_checkpoint

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


def test_who_computes_otherwise_refuses_it(folder: Path) -> None:
    with pytest.raises(UserError, match="the weights are quantized"):
        describe(str(folder))


def test_another_s_words_are_not_read(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["symmetric"] = False
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="the weights are quantized"):
        open_to_score(str(folder))


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
