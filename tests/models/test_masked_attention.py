"""Attention over a mask and a past against a plain softmax in float64."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chopjax.models import masked_attention
from chopjax.models.masked_attention import attend_visible
from chopjax.models.scores import PLAIN, Scores
from chopjax.models.tree_attention import LayerPast

T, S, K, G, H = 13, 7, 2, 3, 8


SHAPES = {
    "plain": PLAIN,
    "cap": Scores(scale=0.6, cap=1.1),
    "ALiBi": Scores(slopes=(0.5, 0.3, 0.2, 0.1, 0.05, 0.7)),
}


def plain(query, key, value, visible, past, places=None, window=1 << 30, scores=PLAIN):
    """One query at a time, over its visible keys alone."""
    mixed = np.zeros(query.shape)
    for b, t, n in np.ndindex(query.shape[:3]):
        own = (
            visible[b, t] if places is None else visible[b, t] & (places[b, t] - places[b] < window)
        )
        keys, values = key[b, own, n // G], value[b, own, n // G]
        where = np.zeros(own.sum()) if places is None else places[b][own]
        if past is not None:
            row = b if len(past[0]) > 1 else 0
            seen = past[2][row]
            if places is not None:
                seen = seen & (places[b, t] - past[3][row] < window)
            keys = np.concatenate([past[0][row, seen, n // G], keys])
            values = np.concatenate([past[1][row, seen, n // G], values])
            where = np.concatenate([np.asarray(past[3])[row][np.asarray(seen)], where])
        score = keys.astype(np.float64) @ query[b, t, n] * (scores.scale or H**-0.5)
        if scores.cap:
            score = scores.cap * np.tanh(score / scores.cap)
        if scores.slopes:
            score -= scores.slopes[n] * (places[b, t] - where)
        weights = np.exp(score - score.max())
        mixed[b, t, n] = weights / weights.sum() @ values
    return mixed


@pytest.mark.parametrize("pasts", [0, 1, None], ids=["no past", "shared", "one a row"])
@pytest.mark.parametrize("rows", [1, pytest.param(6, marks=pytest.mark.thorough), 5])
@pytest.mark.parametrize("most", [100, 2], ids=["blocks of 4", "blocks of 7"])
@pytest.mark.parametrize(
    ("window", "shape"),
    [
        (None, "plain"),
        pytest.param(1, "plain", marks=pytest.mark.thorough),
        (9, "plain"),
        (9, "cap"),
        (None, "ALiBi"),
    ],
)
def test_against_a_plain_softmax(monkeypatch, rows, pasts, most, window, shape):
    """Groups of 1 and of 3 rows, two that overlap, blocks whose last is shorter, trees as masks,
    grouped heads."""
    monkeypatch.setattr(masked_attention, "CPU_GROUP", 3 * T)
    monkeypatch.setattr(masked_attention, "CPU_BLOCK", 4)
    monkeypatch.setattr(masked_attention, "MOST_BLOCKS", most)
    random = np.random.default_rng(0)

    def draw(*shape):
        return random.normal(size=shape).astype(np.float32)

    query, key, value = draw(rows, T, K * G, H), draw(rows, T, K, H), draw(rows, T, K, H)
    visible = np.tril(random.random((rows, T, T)) < 0.5) | np.eye(T, dtype=bool)
    past = None
    if pasts != 0:
        past_rows = pasts or rows
        filled = random.random((past_rows, S)) < 0.6
        filled[-1] = False  # a past without a token is none
        filled[0, 0] = past_rows > 1 or rows > 1
        before = np.sort(random.integers(0, 20, (past_rows, S)), axis=1)
        keys, values = draw(past_rows, S, K, H), draw(past_rows, S, K, H)
        past = LayerPast(keys, values, jnp.asarray(filled), jnp.asarray(before))
    places = np.sort(random.integers(12, 30, (rows, T)), axis=1)
    far = None if window is None else jnp.int32(window)
    run = jax.jit(functools.partial(attend_visible, scores=SHAPES[shape]))
    got = run(query, key, value, visible, places, past, window=far)
    near = {"places": places, "window": window or 1 << 30, "scores": SHAPES[shape]}
    np.testing.assert_allclose(got, plain(query, key, value, visible, past, **near), atol=2e-6)


def test_half_precision_weighs_in_float32():
    random = np.random.default_rng(0)
    query, key, value = (
        jnp.asarray(random.normal(size=(2, T, n, H)), jnp.bfloat16) for n in (K * G, K, K)
    )
    visible = jnp.tril(jnp.ones((2, T, T), bool))
    got = attend_visible(query, key, value, visible, jnp.arange(T)[None])
    assert got.dtype == jnp.bfloat16
    wide = [np.asarray(x, np.float32) for x in (query, key, value)]
    want = plain(wide[0], wide[1], wide[2], visible, None)
    np.testing.assert_allclose(np.asarray(got, np.float32), want, atol=2e-2)
