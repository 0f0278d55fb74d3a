"""Dropout's masks: as many zeros as a binomial law has, wherever one counts, and nothing else."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chopjax.models.dropout import dropped

B, T, D = 8, 64, 192
KEYS = jax.random.split(jax.random.key(3), B)


def zeros(keys: jax.Array, rate: float, shape: tuple[int, ...] = (T, D)) -> np.ndarray:
    x = jnp.ones((len(keys), *shape))
    return np.asarray(jax.jit(dropped, static_argnums=2)(x, keys, rate) == 0)


def surprise(counts: np.ndarray, of: int, rate: float) -> float:
    """Chi-square of counts beside the binomial law, per degree of freedom."""
    law = [math.comb(of, k) * rate**k * (1 - rate) ** (of - k) for k in range(of + 1)]
    expected = np.array(law) * counts.size
    seen = np.bincount(counts.reshape(-1), minlength=of + 1)
    common = expected >= 8
    rest = np.array([expected[~common].sum() + 1e-9, *expected[common]])
    got = np.array([seen[~common].sum(), *seen[common]])
    return float(((got - rest) ** 2 / rest).sum() / common.sum())


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_numbers_fall_as_a_binomial_law_says(rate: float) -> None:
    mask = zeros(KEYS, rate)
    # Beside each other, below each other, and at one place of all rows.
    for groups in (mask.reshape(-1, 16), mask.reshape(B, 4, 16, D).swapaxes(2, 3), mask.T):
        counts = groups.sum(axis=-1)
        assert surprise(counts, groups.shape[-1], rate) < 2.5


def test_keys_that_follow_each_other_share_no_more_than_chance() -> None:
    """Those of two steps, two rows, two layers: folded in."""
    keys = jax.vmap(lambda n: jax.random.fold_in(jax.random.key(0), n))(jnp.arange(64))
    flat = zeros(keys, 0.5).reshape(64, -1) - 0.5
    shared = flat @ flat.T / (0.25 * flat.shape[1])
    np.fill_diagonal(shared, 0)
    assert np.abs(shared).max() < 5 / math.sqrt(flat.shape[1])


def test_a_row_depends_on_its_key_alone_and_the_mean_stays() -> None:
    x = jax.random.normal(jax.random.key(1), (B, T, 4, 6))
    got = dropped(x, KEYS, 0.25)
    np.testing.assert_array_equal(got[2:3], dropped(x[2:3], KEYS[2:3], 0.25))
    stays = np.asarray(got != 0)
    np.testing.assert_allclose(got[stays], (x / 0.75)[stays], rtol=1e-6)
    assert dropped(x.astype(jnp.bfloat16), KEYS, 0.25).dtype == jnp.bfloat16
