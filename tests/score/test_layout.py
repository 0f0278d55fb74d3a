"""Rows and batches from sizes alone: they fit, and no simpler choice would be less work."""

from __future__ import annotations

import dataclasses
import itertools
import math

import hypothesis
import hypothesis.strategies as st
import pytest

from chopjax.score import layout
from chopjax.score.layout import Budget, fill, lay_out, past_lengths, row_length

some_groups = st.lists(
    st.lists(st.integers(1, 150), min_size=1, max_size=15), min_size=1, max_size=3
)
budgets = st.builds(
    Budget,
    tokens=st.sampled_from([1, 64, 200, 1000]),
    shortest=st.sampled_from([8, 32]),
    attention=st.sampled_from([16.0, 2048.0]),
    batch=st.sampled_from([0, 100]),
    shape=st.sampled_from([0, 50, 1000]),
    shards=st.sampled_from([1, 2, 3]),
)


def distinct_pasts(groups: list[list[int]]) -> list[int]:
    return [40 * number for number in range(len(groups))]


def allowed_lengths(budget: Budget, longest: int) -> list[int]:
    return sorted({row_length(size, budget) for size in range(1, longest + 1)})


@hypothesis.given(some_groups, budgets)
@hypothesis.settings(max_examples=50, deadline=None)
def test_batches_fit(groups: list[list[int]], budget: Budget) -> None:
    lengths = allowed_lengths(budget, max(map(max, groups)))
    found: list[tuple[int, int]] = []
    for batch in lay_out(groups, distinct_pasts(groups), budget):
        shape = batch.shape
        assert shape.length in lengths
        assert shape.rows % budget.shards == 0
        # A row for each shard is the least; more have to fit.
        assert shape.rows * shape.length <= budget.tokens or shape.rows == budget.shards
        assert 0 < len(batch.rows) <= shape.rows
        assert all(batch.rows)
        for row in batch.rows:
            assert sum(groups[batch.group][tree] for tree in row) <= shape.length
            found += [(batch.group, tree) for tree in row]
    assert len(found) == len(set(found))
    assert set(found) == {(g, tree) for g, trees in enumerate(groups) for tree in range(len(trees))}


@hypothesis.given(some_groups, budgets)
@hypothesis.settings(max_examples=50, deadline=None)
def test_no_other_choice_of_lengths_is_less_work(groups: list[list[int]], budget: Budget) -> None:
    """With batches as high as they may be."""

    def passes(height: int, length: int) -> float:
        return height * length * (1 + length / budget.attention) + budget.batch

    shapes = [batch.shape for batch in lay_out(groups, distinct_pasts(groups), budget)]
    a_length = budget.shape * len(groups)  # every past is compiled with every length
    work = sum(passes(shape.rows, shape.length) for shape in shapes)
    work += a_length * len({shape.length for shape in shapes})
    *shorter, last = allowed_lengths(budget, max(map(max, groups)))
    for chosen in itertools.chain([()], itertools.combinations(shorter, 1), [tuple(shorter)]):
        other, above = 0.0, 0
        for length in (*chosen, last):
            rows = [len(fill(trees, above, length)) for trees in groups]
            above = length
            most = max(1, budget.tokens // length // budget.shards) * budget.shards
            other += passes(most, length) * sum(math.ceil(count / most) for count in rows)
            other += a_length * any(rows)
        assert work <= other * (1 + 1e-9)


@hypothesis.given(some_groups, budgets.filter(lambda budget: budget.shape > 0))
@hypothesis.settings(max_examples=50, deadline=None)
def test_one_length_where_a_compilation_is_dear(groups: list[list[int]], budget: Budget) -> None:
    dear = dataclasses.replace(budget, shape=10**12)
    shapes = {batch.shape for batch in lay_out(groups, distinct_pasts(groups), dear)}
    assert {shape.length for shape in shapes} == {row_length(max(map(max, groups)), dear)}
    assert len({shape.rows for shape in shapes}) == 1


def test_rows_are_spread_evenly_over_the_fewest_batches() -> None:
    budget = Budget(tokens=160, shortest=16, batch=1000)  # ten rows at most
    found = lay_out([[16] * 12], [0], budget)
    assert [(batch.shape.rows, len(batch.rows)) for batch in found] == [(6, 6), (6, 6)]


@pytest.mark.parametrize("sample", [16, 4096])
def test_a_sample_chooses_the_lengths_and_all_trees_are_placed(
    sample: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "SAMPLE", sample)
    sizes = [1 + number * 37 % 97 for number in range(400)]
    found = lay_out([sizes], [0], Budget(tokens=512, shortest=16, shape=100))
    placed = sorted(tree for batch in found for row in batch.rows for tree in row)
    assert placed == list(range(400))
    # Near the least there could be, either way.
    assert sum(batch.shape.rows * batch.shape.length for batch in found) < 1.1 * sum(sizes)


@hypothesis.given(st.lists(st.lists(st.integers(1, 300), min_size=1, max_size=80), min_size=1))
@hypothesis.settings(max_examples=50, deadline=None)
def test_no_tree_is_lost_that_the_sample_lacks(groups: list[list[int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "SAMPLE", 16)
        batches = lay_out(groups, [0] * len(groups), Budget(tokens=256, shortest=8, shape=10))
    placed = sorted((b.group, tree) for b in batches for row in b.rows for tree in row)
    assert placed == [(g, tree) for g, group in enumerate(groups) for tree in range(len(group))]


@hypothesis.given(st.lists(st.integers(1, 40), max_size=25), st.integers(0, 10))
@hypothesis.settings(max_examples=50, deadline=None)
def test_the_fullest_row_with_room_takes_the_next_tree(sizes: list[int], above: int) -> None:
    capacity = 32
    expected: list[list[int]] = []
    room: list[int] = []
    chosen = [index for index, size in enumerate(sizes) if above < size <= capacity]
    for index in sorted(chosen, key=lambda i: (-sizes[i], i)):
        fitting = [row for row, free in enumerate(room) if free >= sizes[index]]
        if not fitting:
            fitting = [len(room)]
            room.append(capacity)
            expected.append([])
        row = min(fitting, key=lambda r: (room[r], r))
        room[row] -= sizes[index]
        expected[row].append(index)
    assert fill(sizes, above, capacity) == [tuple(row) for row in expected]


@hypothesis.given(
    st.dictionaries(st.integers(0, 400), st.integers(0, 10**5), max_size=6),
    st.integers(1, 3),
    budgets,
)
@hypothesis.settings(max_examples=50, deadline=None)
def test_pasts_are_the_cheapest(slots: dict[int, int], lengths: int, budget: Budget) -> None:
    def work(pasts: dict[int, int]) -> float:
        looked_at = sum(slots[depth] * past for depth, past in pasts.items())
        compiled = len({past for past in pasts.values() if past})
        return 2 * looked_at / budget.attention + budget.shape * lengths * compiled

    found = past_lengths(slots, lengths, budget)
    assert found.keys() == slots.keys()
    assert all(past >= depth and (past > 0) == (depth > 0) for depth, past in found.items())
    rounded = sorted({row_length(depth, budget) for depth in slots if depth})
    for count in range(len(rounded)):
        for some in itertools.combinations(rounded[:-1], count):
            offered = (*some, rounded[-1])
            other = {
                depth: min(past for past in offered if past >= depth) if depth else 0
                for depth in slots
            }
            assert work(found) <= work(other) * (1 + 1e-9)


@hypothesis.given(st.integers(1, 5000), st.sampled_from([1, 2, 8, 32, 128]))
@hypothesis.settings(max_examples=50, deadline=None)
def test_lengths_hold_what_they_are_for(size: int, shortest: int) -> None:
    budget = Budget(shortest=shortest)
    length = row_length(size, budget)
    assert length >= max(size, shortest)
    assert row_length(length, budget) == length
    assert row_length(size + 1, budget) >= length
    if size > 2 * shortest:
        assert length - size <= length / 4
        between = {row_length(other, budget) for other in range(size, 2 * size)}
        assert len(between) <= 5  # four for every doubling, both ends counted
