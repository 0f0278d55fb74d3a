"""Trees in blocks of queries, beside the same mask as numbers: by cuDNN, which XLA stands in for,
and in tiles; and what of it exists at a time."""

from __future__ import annotations

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from models.test_tree_attention import T, arrays, ends_of

from chopjax.models import tree_blocks
from chopjax.models.masked_attention import attend_visible
from chopjax.models.scores import PLAIN, Scores
from chopjax.models.tree_attention import LayerPast, Tiles, Tree, attend_tree
from chopjax.plan.gpus import answer_for_the_gpu

MASKED = -2.0 * 2**40  # what a mask of cuDNN's adds to a score; not minus infinity
PASTS = pytest.mark.parametrize("past_rows", [0, 1, 3], ids=["no past", "shared", "one a row"])


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """24 tokens are two blocks of 10 and a smaller one."""
    monkeypatch.setattr(tree_blocks, "BLOCK", 10)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


def drawn(past_rows: int) -> tuple[Any, Any, Tree]:
    """Of three rows, one is plain text; of pasts of their own, the first is empty."""
    random = np.random.default_rng(0)
    row, past = arrays(random, 3, past_rows)
    ends = np.stack([ends_of(random, T), ends_of(random, T), np.full(T, T)])
    return row, past, Tree(jnp.asarray(ends, jnp.int32))


@PASTS
def test_cudnn_adds_up_to_the_mask(monkeypatch: pytest.MonkeyPatch, past_rows: int):
    blocks = []

    def by_xla(query, key, value, visible, scale) -> tuple[Any, Any]:
        assert visible.shape == (len(query), 1, query.shape[1], key.shape[1])
        blocks.append((query.shape[1], key.shape[1]))
        groups = query.shape[2] // key.shape[2]
        key, value = (jnp.repeat(x, groups, axis=2) for x in (key, value))
        score = scale * jnp.einsum("BQNH,BCNH->BNQC", query, key)
        score += jnp.where(visible, 0.0, MASKED)
        total = jax.nn.logsumexp(score, axis=-1, keepdims=True)
        mixed = jnp.einsum("BNQC,BCNH->BQNH", jnp.exp(score - total), value)
        return mixed, jnp.swapaxes(total[..., 0], 1, 2)

    monkeypatch.setattr(tree_blocks, "_call_cudnn", by_xla)
    (query, key, value), past, tree = drawn(past_rows)
    scores, places = Scores(scale=0.6), jnp.zeros((1, T), jnp.int32)
    attend = jax.jit(functools.partial(attend_tree, scores=scores))
    got = attend(query, key, value, tree, past)
    own = [(10, 10), (10, 20), (4, 24)]  # no key behind a block's last query
    before = {0: [], 1: [(30, 16), (30, 16), (12, 16)], 3: [(10, 16), (10, 16), (4, 16)]}
    assert blocks == own + before[past_rows]
    attend = jax.jit(functools.partial(attend_visible, scores=scores))
    want = attend(query, key, value, tree.visible(T), places, past)
    np.testing.assert_allclose(got, want, atol=2e-6)


@PASTS
@pytest.mark.parametrize(
    ("scores", "window"),
    [(Scores(scale=0.6, cap=1.1), None), (Scores(slopes=(0.5, 0.25, 0.125, 0.0625)), 9)],
    ids=["cap", "ALiBi and a window"],
)
def test_tiles_add_up_to_the_mask(past_rows: int, scores: Scores, window: int | None):
    (query, key, value), past, tree = drawn(past_rows)
    positions = jnp.asarray(np.random.default_rng(1).integers(16, 30, (3, T)), jnp.int32)
    if past is not None:
        slots = jnp.broadcast_to(jnp.arange(16), past.positions_BS.shape)
        past = past._replace(positions_BS=slots)
    reach = None if window is None else jnp.int32(window)
    attend = jax.jit(functools.partial(attend_tree, scores=scores))
    got = attend(query, key, value, tree, past, tiles=Tiles(positions, reach))
    attend = jax.jit(functools.partial(attend_visible, scores=scores))
    want = attend(query, key, value, tree.visible(T), positions, past, window=reach)
    np.testing.assert_allclose(got, want, atol=3e-6)


@pytest.mark.parametrize("way", ["cudnn", "tiles"])
def test_what_exists_at_a_time(monkeypatch: pytest.MonkeyPatch, way: str):
    """The largest array of the program for a GPU: of a row, and of one twice as long, trunk too."""
    monkeypatch.setattr(tree_blocks, "BLOCK", 64)
    for asked in ("check_cudnn_version", "check_compute_capability"):  # to be as they were
        monkeypatch.setattr(cudnn, asked, getattr(cudnn, asked))
    answer_for_the_gpu()

    def largest(length: int) -> int:
        def array(*shape: int, dtype: Any = jnp.bfloat16) -> Any:
            return jax.ShapeDtypeStruct(shape, dtype)

        row = array(2, length, 4, 16), array(2, length, 2, 16), array(2, length, 2, 16)
        ends = array(2, length, dtype=jnp.int32)
        trunk = [array(1, length, 2, 16)] * 2
        slots = array(1, length, dtype=jnp.bool_), array(1, length, dtype=jnp.int32)

        def attend(query: Any, key: Any, value: Any, ends: Any, *past: Any) -> jax.Array:
            tiles = Tiles(ends, jnp.int32(9)) if way == "tiles" else None
            return attend_tree(query, key, value, Tree(ends), LayerPast(*past), PLAIN, tiles)

        traced = jax.jit(attend).trace(*row, ends, *trunk, *slots)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        assert ("__cudnn$fmhaScaleBiasSoftmax" in text) == (way == "cudnn")
        shapes = re.findall(r"tensor<((?:\d+x)+)", text)
        return max(math.prod(map(int, shape.split("x")[:-1])) for shape in shapes)

    assert largest(1024) <= 2 * largest(512)
