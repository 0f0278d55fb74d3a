"""Merged layers: the arithmetic, the files, LaCo's search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
import transformers
from flax.traverse_util import flatten_dict
from hypothesis import given
from hypothesis import strategies as st

from chopjax.checkpoint.load import load
from chopjax.checkpoint.open import open_checkpoint
from chopjax.chop.calibration import make_batches
from chopjax.chop.importance import Protect
from chopjax.chop.laco import blend_params, laco
from chopjax.chop.merge import (
    average,
    average_most_similar,
    bases,
    collapse,
    matrix,
    plain,
)
from chopjax.chop.stream import chop_checkpoint
from chopjax.models.compute import Compute

LAYERS = 6


def test_laco_adds_the_differences_to_the_first_layer() -> None:
    weights = dict(collapse(plain(LAYERS), 1, 3)[1].weights)
    assert weights == {1: -2.0, 2: 1.0, 3: 1.0, 4: 1.0}
    assert bases(collapse(plain(LAYERS), 1, 3)) == (0, 1, 5)


def test_an_average_is_the_mean() -> None:
    recipe = average(plain(LAYERS), 2, 3)
    assert recipe[2].base == 2
    assert dict(recipe[2].weights) == pytest.approx({2: 1 / 3, 3: 1 / 3, 4: 1 / 3})
    assert bases(recipe) == (0, 1, 2, 5)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 4), st.booleans()), max_size=4))
def test_merging_what_is_merged_composes(steps: list[tuple[int, int, bool]]) -> None:
    """Applying a recipe to layers that hold one number each is the same as merging step by step."""
    values = list(np.random.default_rng(0).random(10))
    recipe, now = plain(10), values
    for place, following, fold in steps:
        part = now[place : place + following + 1]
        if len(part) < following + 1:
            continue
        merged = part[0] + sum(x - part[0] for x in part[1:]) if fold else np.mean(part)
        now = [*now[:place], merged, *now[place + following + 1 :]]
        recipe = (
            collapse(recipe, place, following) if fold else average(recipe, place, following + 1)
        )
    table = matrix(recipe, 10)[: len(recipe)]
    np.testing.assert_allclose(table @ values, now, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(table.sum(axis=1), 1, atol=1e-4)
    assert list(bases(recipe)) == sorted(set(bases(recipe)))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_checkpoint_is_what_a_merge_by_hand_gives(tmp_path: Path, family: str) -> None:
    depth = {"llama": "num_hidden_layers", "gpt2": "n_layer"}[family]
    sizes: dict[str, Any] = {depth: LAYERS}
    checkpoints.write_checkpoint(tmp_path / "m", family, **sizes)
    recipe = average(collapse(plain(LAYERS), 1, 2), 2, 2)
    chop_checkpoint(
        open_checkpoint(str(tmp_path / "m")), bases(recipe), tmp_path / "out", "test", {},
        recipe=recipe,
    )  # fmt: skip
    model = checkpoints.random_model(family, **{depth: LAYERS})
    base = model.base_model
    name = "layers" if family == "llama" else "h"
    blocks = list(getattr(base, name))
    with torch.no_grad():
        for parts in zip(*(block.parameters() for block in blocks), strict=True):
            parts[1].copy_(parts[1] + (parts[2] - parts[1]) + (parts[3] - parts[1]))
            parts[4].copy_((parts[4] + parts[5]) / 2)
    kept = [blocks[0], blocks[1], blocks[4]]
    setattr(base, name, torch.nn.ModuleList(kept))
    model.config.num_hidden_layers = 3
    ours = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        wanted = model(tokens, use_cache=False).logits
        assert (ours(tokens, use_cache=False).logits - wanted).abs().max() < 1e-4
    assert json.loads((tmp_path / "out" / "chopjax.json").read_text())["kept_layers"] == [0, 1, 4]


def test_memory_and_files_agree(tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path / "m", "llama", torch.bfloat16, num_hidden_layers=LAYERS)
    recipe = collapse(average(plain(LAYERS), 3, 2), 1, 1)
    chop_checkpoint(
        open_checkpoint(str(tmp_path / "m")), bases(recipe), tmp_path / "out", "test", {},
        recipe=recipe,
    )  # fmt: skip
    weights_RL = matrix(recipe, LAYERS)[: len(bases(recipe))]
    blended = blend_params(load(str(tmp_path / "m")).params, weights_RL)
    merged = flatten_dict(blended, sep="/")
    written = flatten_dict(load(str(tmp_path / "out")).params, sep="/")
    assert merged.keys() == written.keys()
    for path, array in merged.items():
        assert array.dtype == written[path].dtype == "bfloat16"
        ours, theirs = (np.asarray(x, np.float32) for x in (array, written[path]))
        np.testing.assert_allclose(ours, theirs, rtol=2**-7, err_msg=path)


def test_average_takes_the_closest_block_of_one_layer_more() -> None:
    table: Any = [[9.0] * (LAYERS - layer) + [None] * layer for layer in range(LAYERS)]
    table[2][2] = 0.1  # layers 2, 3, 4
    about = {"num_layers": LAYERS, "measures": {"distance": table}}
    recipe, keep = average_most_similar(about, 2, Protect())
    assert keep == (0, 1, 2, 5)
    assert dict(recipe[2].weights) == pytest.approx({2: 1 / 3, 3: 1 / 3, 4: 1 / 3})


def test_laco_folds_what_changes_least(tmp_path: Path) -> None:
    """Layers 2 to 4 are made equal and idle: folding them changes nothing."""
    checkpoints.write_checkpoint(tmp_path / "m", "llama", num_hidden_layers=8)
    ours = load(str(tmp_path / "m"))
    blocks = ours.params["blocks"]
    for part, name in (("attention", "output"), ("mlp", "down")):
        blocks[part][name] = blocks[part][name].at[2:6].multiply(1e-4)
    draw = np.random.default_rng(0)
    batches = make_batches([draw.integers(1, 97, 12).tolist() for _ in range(3)], 3)
    recipe = laco(ours.params, ours.config, Compute(), batches, 3, Protect())
    assert bases(recipe) == (0, 1, 2, 6, 7)
    many = laco(ours.params, ours.config, Compute(), batches, 5, Protect())
    assert len(many) == 3
    assert many[0] == plain(8)[0]
    assert many[-1] == plain(8)[-1]
