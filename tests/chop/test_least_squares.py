"""The maps of a repair, against numpy's own least squares."""

from __future__ import annotations

import numpy as np
import pytest

from chopjax.chop.least_squares import Sums, solve

RNG = np.random.default_rng(0)
X, R = RNG.normal(size=(90, 7)) + 3.0, RNG.normal(size=(90, 7))


def sums(x: np.ndarray = X, r: np.ndarray = R, diagonal: bool = False) -> Sums:
    """In two pieces."""
    total = Sums(diagonal)
    total.add(x[:40], r[:40])
    total.add(x[40:], r[40:])
    return total


def test_linear_and_affine_are_lstsq() -> None:
    change, constant = solve(sums(), affine=False, ridge=0.0)
    np.testing.assert_allclose(change, np.linalg.lstsq(X, R, rcond=None)[0], atol=1e-10)
    assert not constant.any()
    change, constant = solve(sums(), affine=True, ridge=0.0)
    with_one = np.linalg.lstsq(np.c_[X, np.ones(len(X))], R, rcond=None)[0]
    np.testing.assert_allclose(np.r_[change, constant[None]], with_one, atol=1e-10)


def test_replace_me_says_the_same_of_the_whole_map() -> None:
    """T = (MᵀM)⁻¹Mᵀ(E - S + M), as the paper's code has it."""
    change, _ = solve(sums(), affine=False, ridge=0.0)
    whole = np.linalg.solve(X.T @ X, X.T @ (R + X))
    np.testing.assert_allclose(np.eye(7) + change, whole, atol=1e-10)


def test_a_ridge_counts_in_means_of_the_diagonal_and_leaves_the_constant_free() -> None:
    penalty = 0.3 * np.trace(X.T @ X) / 7
    change, _ = solve(sums(), affine=False, ridge=0.3)
    expected = np.linalg.solve(X.T @ X + penalty * np.eye(7), X.T @ R)
    np.testing.assert_allclose(change, expected, atol=1e-10)
    change, constant = solve(sums(), affine=True, ridge=1e15)
    np.testing.assert_allclose(change, 0.0, atol=1e-10)
    np.testing.assert_allclose(constant, R.mean(axis=0))


@pytest.mark.parametrize("affine", [False, True])
def test_a_diagonal_is_a_regression_for_each_channel(affine: bool) -> None:
    change, constant = solve(sums(diagonal=True), affine, ridge=0.0)
    for channel in range(7):
        columns = [X[:, channel], *([np.ones(len(X))] if affine else [])]
        found = np.linalg.lstsq(np.stack(columns, 1), R[:, channel], rcond=None)[0]
        np.testing.assert_allclose([change[channel], constant[channel]][: len(found)], found)


def test_what_the_text_does_not_tell_stays_as_it_is() -> None:
    """Fewer tokens than channels, and one that is always zero: the least change of all."""
    x, r = X[:5].copy(), R[:5]
    x[:, 2] = 0.0
    few = Sums(diagonal=False)
    few.add(x, r)
    change, _ = solve(few, affine=False, ridge=0.0)
    np.testing.assert_allclose(change, np.linalg.lstsq(x, r, rcond=None)[0], atol=1e-8)
    nothing = Sums(diagonal=False)
    nothing.add(np.zeros((3, 7)), r[:3])
    assert not solve(nothing, affine=False, ridge=0.1)[0].any()
    only = Sums(diagonal=True)
    only.add(x, r)
    assert solve(only, affine=False, ridge=0.0)[0][2] == 0.0
