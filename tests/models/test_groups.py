"""Rows in groups, which may overlap."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from chopjax.models.groups import START, division, in_groups


@given(st.integers(1, 300), st.integers(0, 40), st.integers(1, 2048))
def test_groups_hold_the_batch_in_the_least_time(batch, most, length):
    groups, rows = division(batch, most, length)
    assert 1 <= rows <= max(1, most)
    assert (groups - 1) * rows < batch <= groups * rows
    sizes = range(1, max(1, most) + 1)
    assert groups * (rows * length + START) == min(
        math.ceil(batch / size) * (size * length + START) for size in sizes if size <= batch
    )
    if batch <= most:
        assert groups == 1


def test_rows_are_computed_twice_where_that_is_faster():
    """A prime number of them, short or long."""
    assert division(29, 10, 96) == (3, 10)
    assert division(13, 4, 256) == (13, 1)


@given(st.integers(1, 23), st.integers(0, 8), st.integers(1, 200))
@settings(max_examples=25, deadline=None)
def test_groups_give_what_the_whole_does(batch, most, length):
    """Every row once and in its place, of trees with several leaves and with none."""
    seen = []

    def run(arrays):
        x, _, (numbers,) = arrays
        seen.append(len(numbers))
        return {"sums": jnp.sum(x, axis=-1), "numbers": numbers * 10}

    x = np.arange(batch * 3, dtype=np.float32).reshape(batch, 3) ** 2
    arrays = jnp.asarray(x), None, (jnp.arange(batch),)
    made = in_groups(run, arrays, most, length)
    np.testing.assert_array_equal(made["sums"], x.sum(axis=-1))
    np.testing.assert_array_equal(made["numbers"], np.arange(batch) * 10)
    assert seen == [division(batch, most, length)[1]]
