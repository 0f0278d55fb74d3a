"""Patterns, and which weights go."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import sparse_peers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from chopjax.errors import UserError
from chopjax.sparsify.masks import magnitude, smallest, wanda
from chopjax.sparsify.pattern import Pattern, parse_pattern

# One shape, so that little is compiled; few numbers, so that many are equal.
MATRICES = arrays.arrays(
    np.float32, (16, 6), elements=st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0])
)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("2:4", Pattern(0.5, 4)),
        ("4:8", Pattern(0.5, 8)),
        ("16:32", Pattern(0.5, 32)),
        ("0.5", Pattern(0.5)),
        (".25", Pattern(0.25)),
        ("0.33333333", Pattern(0.33333333)),
    ],
)
def test_patterns(text: str, pattern: Pattern) -> None:
    assert parse_pattern(text) == pattern
    assert float(pattern.name) == float(text) if ":" not in text else pattern.name == text


@pytest.mark.parametrize(
    "text", ["1:4", "3:4", "64:128", "3:6", "0:0", "2:", "half", "0", "1", "nan", "-0.5", "50%", ""]
)
def test_what_is_no_pattern(text: str) -> None:
    with pytest.raises(UserError, match="--pattern"):
        parse_pattern(text)


@settings(max_examples=40, deadline=None)
@given(MATRICES, arrays.arrays(np.float32, 16, elements=st.sampled_from([0.0, 0.25, 1.0, 9.0])))
def test_of_every_group_half_goes_and_it_is_the_smaller_half(
    weight_IO: np.ndarray, square_I: np.ndarray
) -> None:
    for group in (4, 8):
        pattern = Pattern(0.5, group)
        for score_IO, mask in (
            (np.abs(weight_IO), magnitude(jnp.asarray(weight_IO), pattern)),
            (
                np.abs(weight_IO) * np.sqrt(square_I)[:, None],
                wanda(jnp.asarray(weight_IO), jnp.asarray(square_I), pattern),
            ),
        ):
            gone_GMO = np.asarray(mask).reshape(-1, group, 6)
            score_GMO = score_IO.reshape(-1, group, 6)
            assert (gone_GMO.sum(axis=1) == group // 2).all()
            assert ((weight_IO * ~np.asarray(mask)).reshape(-1, group, 6) != 0).sum(
                axis=1
            ).max() <= group // 2
            largest_gone = np.where(gone_GMO, score_GMO, -1).max(axis=1)
            smallest_left = np.where(gone_GMO, np.inf, score_GMO).min(axis=1)
            assert (largest_gone <= smallest_left).all()


def test_of_equal_scores_the_first_go() -> None:
    mask = magnitude(jnp.ones((8, 1)), Pattern(0.5, 4))
    assert np.asarray(mask)[:, 0].tolist() == [True, True, False, False] * 2
    assert np.asarray(smallest(jnp.array([3.0, 1.0, 1.0, 1.0]), 2)).tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "0.3"])
def test_masks_are_torchs(pattern: str) -> None:
    draw = np.random.default_rng(3)
    weight_IO, x_NI = draw.normal(size=(24, 10)), draw.normal(size=(50, 24)) * np.arange(24)
    weight, x = torch.tensor(weight_IO.T), torch.tensor(x_NI)
    ours = magnitude(jnp.asarray(weight_IO), parse_pattern(pattern))
    np.testing.assert_array_equal(ours, sparse_peers.magnitude(weight, pattern).T)
    square_I = jnp.asarray(np.square(x_NI).sum(axis=0))
    ours = wanda(jnp.asarray(weight_IO), square_I, parse_pattern(pattern))
    np.testing.assert_array_equal(ours, sparse_peers.wanda(weight, x, pattern).T)


def test_wanda_takes_a_share_of_every_output_and_magnitude_of_the_matrix() -> None:
    weight_IO = np.random.default_rng(0).normal(size=(20, 6)) * np.arange(1, 7)
    pattern = Pattern(0.3)
    of_outputs = np.asarray(wanda(jnp.asarray(weight_IO), jnp.ones(20), pattern)).sum(axis=0)
    assert of_outputs.tolist() == [6] * 6
    of_matrix = np.asarray(magnitude(jnp.asarray(weight_IO), pattern))
    assert of_matrix.sum() == 36
    assert of_matrix.sum(axis=0)[0] > of_matrix.sum(axis=0)[-1]
