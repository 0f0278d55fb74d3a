"""SparseGPT on one matrix, beside plain torch in float64."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import sparse_peers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chopjax.errors import UserError
from chopjax.sparsify.compensate import inverse_factor
from chopjax.sparsify.pattern import parse_pattern
from chopjax.sparsify.sparsegpt import sparsegpt


def inputs(width: int, tokens: int = 600, seed: int = 0) -> np.ndarray:
    """[tokens, width]: they depend on each other, of very different sizes, one of them zero."""
    draw = np.random.default_rng(seed)
    mixed = draw.normal(size=(tokens, width)) @ draw.normal(size=(width, width)) / width**0.5
    x_NI = (mixed + 0.3 * draw.normal(size=(tokens, width))) * draw.lognormal(size=width)
    x_NI[:, 5] = 0
    return x_NI.astype(np.float32).astype(np.float64)


def pruned(weight_IO: np.ndarray, x_NI: np.ndarray, pattern: str) -> np.ndarray:
    gram_II = (x_NI.T @ x_NI).astype(np.float32)
    factor_II = inverse_factor(gram_II, len(x_NI), "here")
    made = sparsegpt(
        jnp.asarray(weight_IO, jnp.float32), gram_II.diagonal() == 0, factor_II,
        parse_pattern(pattern),
    )  # fmt: skip
    return np.asarray(made, np.float64)


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "0.5", "0.7"])
def test_it_is_torchs(pattern: str) -> None:
    width = 264  # two blocks, and a rest
    x_NI = inputs(width)
    weight_IO = np.random.default_rng(1).normal(size=(width, 96))
    ours = pruned(weight_IO, x_NI, pattern)
    made, _ = sparse_peers.sparsegpt(torch.tensor(weight_IO.T), torch.tensor(x_NI), pattern)
    theirs = made.T.numpy()
    agrees = (ours == 0) == (theirs == 0)
    assert agrees.mean() > 0.999
    outputs = agrees.all(axis=0)  # a flip changes what follows it
    assert outputs.mean() > 0.9
    np.testing.assert_allclose(ours[:, outputs], theirs[:, outputs], atol=2e-3)

    def error(new_IO: np.ndarray) -> float:
        return float(np.square(x_NI @ (new_IO - weight_IO)).sum())

    assert error(ours) == pytest.approx(error(theirs), rel=1e-2)
    gone = sparse_peers.wanda(torch.tensor(weight_IO.T), torch.tensor(x_NI), pattern).T
    assert error(ours) < 0.9 * error(np.where(gone, 0, weight_IO)), (
        "what stays makes up for what goes"
    )


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_of_every_four_two_at_most_are_left(seed: int) -> None:
    weight_IO = np.random.default_rng(seed).normal(size=(32, 5))
    made = pruned(weight_IO, inputs(32, 40, seed), "2:4")
    assert ((made.reshape(8, 4, 5) != 0).sum(axis=1) <= 2).all()
    assert np.isfinite(made).all()


def test_the_factor_is_that_of_the_damped_inverse() -> None:
    x_NI = inputs(40, 30)  # fewer tokens than inputs
    factor_II = inverse_factor(x_NI.T @ x_NI, 30, "here").astype(np.float64)
    hessian_II = 2 / 30 * x_NI.T @ x_NI
    hessian_II[5, 5] = 1
    hessian_II += 0.01 * hessian_II.diagonal().mean() * np.eye(40)
    assert (np.tril(factor_II, -1) == 0).all()
    np.testing.assert_allclose(factor_II.T @ factor_II @ hessian_II, np.eye(40), atol=2e-4)


def test_sums_that_rounding_left_without_an_inverse_are_an_error() -> None:
    """Two inputs that are nearly one, and larger than all others together."""
    gram_II = np.eye(4096, dtype=np.float32)
    gram_II[:2, :2] = [[1e9, 1e9 + 6e3], [1e9 + 6e3, 1e9]]
    with pytest.raises(UserError, match="layer 3: some inputs are so large on this text"):
        inverse_factor(gram_II, 4, "layer 3")
