"""Attention over a mask and a past against a plain softmax in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chopjax.models import masked_attention
from chopjax.models.masked_attention import attend_visible

T, S, K, G, H = 13, 7, 2, 3, 8


def plain(query, key, value, visible, past):
    """One query at a time, over its visible keys alone."""
    mixed = np.zeros(query.shape)
    for b, t, n in np.ndindex(query.shape[:3]):
        keys, values = key[b, visible[b, t], n // G], value[b, visible[b, t], n // G]
        if past is not None:
            row = b if len(past[0]) > 1 else 0
            keys = np.concatenate([past[0][row, past[2][row], n // G], keys])
            values = np.concatenate([past[1][row, past[2][row], n // G], values])
        scores = keys.astype(np.float64) @ query[b, t, n] / np.sqrt(H)
        weights = np.exp(scores - scores.max())
        mixed[b, t, n] = weights / weights.sum() @ values
    return mixed


@pytest.mark.parametrize("pasts", [0, 1, None], ids=["no past", "shared", "one a row"])
@pytest.mark.parametrize("rows", [1, 5, 6])
@pytest.mark.parametrize("most", [100, 2], ids=["blocks of 4", "blocks of 7"])
def test_against_a_plain_softmax(monkeypatch, rows, pasts, most):
    """Groups of 1, 2 and 3 rows, blocks whose last is shorter, trees as masks, grouped heads."""
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
        past = (draw(past_rows, S, K, H), draw(past_rows, S, K, H), filled)
    got = jax.jit(attend_visible)(query, key, value, visible, past)
    np.testing.assert_allclose(got, plain(query, key, value, visible, past), atol=2e-6)


def test_half_precision_weighs_in_float32():
    random = np.random.default_rng(0)
    arrays = [jnp.asarray(random.normal(size=(2, T, n, H)), jnp.bfloat16) for n in (K * G, K, K)]
    visible = np.tril(np.ones((2, T, T), bool))
    got = attend_visible(*arrays, visible)
    assert got.dtype == jnp.bfloat16
    want = plain(*(np.asarray(x, np.float32) for x in arrays), visible, None)
    np.testing.assert_allclose(np.asarray(got, np.float32), want, atol=2e-2)
