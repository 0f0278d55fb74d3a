"""--weights: a model whose blocks' matrices are quantized while they are read."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import checkpoints
import jax
import numpy as np
import pytest
from score import quantized_on_eight_devices as eight

from chopjax.errors import UserError
from chopjax.models import parameters
from chopjax.models.formats import FORMATS, Kind
from chopjax.models.quantized import Quantized
from chopjax.quantize.quantize import quantize_checkpoint
from chopjax.score.drafting import Drafting, of_layers
from chopjax.score.engine import Engine
from chopjax.score.generation import Asked, generate
from chopjax.score.model import open_engine

REQUESTS = [([3, 5, 8], [9, 4, 4, 7])]


def dense(engine: Engine) -> Engine:
    """With what the codes stand for in place of the codes."""

    def wide(node: Any) -> Any:
        return node.kernel("float32") if isinstance(node, Quantized) else node

    params = jax.tree.map(wide, engine.params, is_leaf=lambda node: isinstance(node, Quantized))
    return Engine(engine.config, params, engine.compute)


@pytest.mark.parametrize(
    ("family", "kind"),
    [("llama", "nf4"), ("llama", "int4"), ("gpt2", "int8"), ("olmoe", "fp8")],
)
def test_scores_are_those_of_the_dequantized_model(family: str, kind: Kind, tmp_path: Path) -> None:
    sizes: dict[str, Any] = (
        {"n_embd": 32} if family == "gpt2" else {"hidden_size": 32, "intermediate_size": 64}
    )
    checkpoints.write_checkpoint(tmp_path, family, **sizes)
    _, engine = open_engine(str(tmp_path), dtype="float32", weights=kind)
    _, plain = open_engine(str(tmp_path), dtype="float32")
    nodes = [
        path
        for path, node in jax.tree.leaves_with_path(
            engine.params, is_leaf=lambda node: isinstance(node, Quantized)
        )
        if isinstance(node, Quantized)
    ]
    assert len(nodes) == len(parameters.kernels(engine.config))
    found, want, before = (
        of.loglikelihood(REQUESTS)[0][0] for of in (engine, dense(engine), plain)
    )
    np.testing.assert_allclose(found, want, rtol=1e-6)
    assert abs(found - before) > 1e-4, "nothing was quantized"


def test_memory_falls_as_the_format_says(tmp_path: Path) -> None:
    checkpoints.write_checkpoint(
        tmp_path, "llama", hidden_size=128, intermediate_size=256, num_hidden_layers=2
    )

    def check(kind: Kind) -> None:
        gc.collect()
        before = sum(array.nbytes for array in jax.live_arrays())
        _, engine = open_engine(str(tmp_path), dtype="bfloat16", weights=kind)
        gc.collect()
        held = sum(array.nbytes for array in jax.live_arrays()) - before
        assert held == expected_bytes(engine, kind), kind

    for kind in FORMATS:
        check(kind)


def expected_bytes(engine: Engine, kind: Kind) -> int:
    """Of bfloat16 parameters, and of kernels with codes and float32 scales in their place."""
    shapes, kernels = parameters.shapes(engine.config), parameters.kernels(engine.config)
    expected = 0
    for path, shape in shapes.items():
        numbers = int(np.prod(shape))
        if path not in kernels:
            expected += 2 * numbers
            continue
        rows = {"nf4": numbers // 64, "int4": numbers // 128}
        outputs = int(np.prod(shape[:1] + shape[1 + len(kernels[path].inputs) :]))
        expected += numbers * FORMATS[kind].bits // 8 + 4 * rows.get(kind, outputs)
    return expected


@pytest.mark.parametrize(
    "way", ["layer by layer", pytest.param("in a scan", marks=pytest.mark.thorough)]
)
def test_text_with_a_draft_and_without(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoding reads the codes, and so does a draft that borrows the model's layers."""
    if way == "in a scan":
        for module in ("generation", "drafting"):
            monkeypatch.setattr(f"chopjax.score.{module}.walks", lambda engine: False)
    checkpoints.write_checkpoint(tmp_path, "llama", hidden_size=32, intermediate_size=64)
    _, engine = open_engine(str(tmp_path), dtype="float32", weights="int4")
    prompts = [np.array([3, 5, 8]), np.array([9])]
    found = dict(generate(engine, prompts, Asked(9)))
    assert found == dict(generate(dense(engine), prompts, Asked(9)))
    drafted = Drafting(engine, of_layers(engine, [0, 2]), 2).generate(prompts, Asked(9))
    assert {index: one.ids for index, one in drafted} == found


@pytest.mark.parametrize(
    ("family", "kind"),
    [("llama", "int4"), ("phi3", "int8"), ("bloom", "fp8"), ("gpt_neox", "int8"), ("opt", "fp8")],
)
def test_a_quantized_folder_is_what_the_flag_makes(family: str, kind: Kind, tmp_path: Path) -> None:
    """Bit for bit, where the parent is float32 and so the folder's scales are."""
    sizes: dict[str, Any] = {}
    if family == "llama":
        sizes = {"hidden_size": 64, "intermediate_size": 96}
    checkpoints.write_checkpoint(tmp_path / "parent", family, **sizes)
    quantize_checkpoint(str(tmp_path / "parent"), tmp_path / "out", kind)
    _, want = open_engine(str(tmp_path / "parent"), dtype="float32", weights=kind)
    _, found = open_engine(str(tmp_path / "out"), dtype="float32")
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, found.params, want.params)))
    with pytest.raises(UserError, match=f"has its weights in {kind} already; leave the flag out"):
        open_engine(str(tmp_path / "out"), weights="int8")


def test_eight_devices_score_as_one(tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path / "m", **eight.MODEL)
    for kind in eight.STORED:
        quantize_checkpoint(str(tmp_path / "m"), tmp_path / kind, kind)
    script = Path(__file__).with_name("quantized_on_eight_devices.py")
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8"}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    for kind in FORMATS:
        want = eight.score(eight.engine_of(tmp_path, kind))
        np.testing.assert_allclose(found["scores"][kind], want, rtol=1e-5)
    assert set(found["split"].values()) == {4}
    assert found["same"] == dict.fromkeys(eight.STORED, True)
