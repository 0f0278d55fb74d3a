from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from chopjax.data.permutation import permute


@given(size=st.integers(1, 5000), seed=st.tuples(st.integers(0, 2**70), st.integers(0, 9)))
@settings(max_examples=60, deadline=None)
def test_every_place_once(size: int, seed: tuple[int, ...]) -> None:
    places = permute(np.arange(size), size, seed)
    assert places.dtype == np.int64
    assert sorted(places.tolist()) == list(range(size))


@given(size=st.integers(1, 2**50), data=st.data())
@settings(max_examples=60, deadline=None)
def test_each_index_goes_its_own_way(size: int, data: st.DataObject) -> None:
    indices = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20, unique=True))
    together = permute(np.array(indices), size, (1,))
    assert together.tolist() == [int(permute(np.array([i]), size, (1,))[0]) for i in indices]
    assert len(set(together.tolist())) == len(indices)
    assert ((together >= 0) & (together < size)).all()


def test_all_orders_are_about_as_likely() -> None:
    """4 things have 24 orders; chi-squared with 23 degrees of freedom is above 50 in 0.1 %."""
    orders = [tuple(permute(np.arange(4), 4, (seed,)).tolist()) for seed in range(4800)]
    counts = np.array([orders.count(order) for order in itertools.permutations(range(4))])
    assert ((counts - 200) ** 2 / 200).sum() < 50


def test_no_pattern_is_left() -> None:
    """Of 1000 indices under 400 seeds: places uniform, neighbours and seeds unrelated."""
    places = np.array([permute(np.arange(1000), 1000, (seed, 5)) for seed in range(400)])
    for index in (0, 1, 500, 999):
        counts, _ = np.histogram(places[:, index], bins=10, range=(0, 1000))
        assert ((counts - 40) ** 2 / 40).sum() < 30  # 9 degrees of freedom, 0.04 %
    steps = np.diff(places, axis=1).ravel()
    assert (steps == 1).mean() < 0.002
    assert abs(np.corrcoef(places[:, 0], places[:, 1])[0, 1]) < 0.2
    assert np.abs(np.corrcoef(places[:20]) - np.eye(20)).max() < 0.15


def test_the_bits_never_change() -> None:
    """A run must resume on the same batches after any update."""
    found = permute(np.arange(8), 99, (7, 0, 0)).tolist()
    assert found == [27, 74, 60, 39, 49, 70, 96, 52]
    far = permute(np.array([0, 2**40]), 2**41 + 1, (2**40, 3, 1)).tolist()
    assert far == [1930830509819, 2170844704293]
