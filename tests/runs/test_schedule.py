"""Rounds: together they remove what is removed at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chopjax.errors import UserError
from chopjax.runs.schedule import ONCE, Schedule, parse_schedule, shares, split_keep


@given(st.integers(2, 40), st.data())
def test_rounds_compose_to_the_whole(num_layers: int, data: st.DataObject) -> None:
    gone = data.draw(st.sets(st.integers(0, num_layers - 1), min_size=1, max_size=num_layers - 1))
    keep = tuple(layer for layer in range(num_layers) if layer not in gone)
    rounds = data.draw(st.integers(1, len(gone)))
    left = list(range(num_layers))
    order: list[int] = []
    for each in split_keep(keep, num_layers, rounds):
        after = [left[place] for place in each]
        order += [layer for layer in left if layer not in after]
        left = after
    assert tuple(left) == keep
    assert order == sorted(gone)


@given(st.integers(1, 60), st.data())
def test_rounds_are_as_even_as_can_be(remove: int, data: st.DataObject) -> None:
    rounds = data.draw(st.integers(1, remove))
    counts = shares(remove, rounds)
    assert len(counts) == rounds
    assert sum(counts) == remove
    assert max(counts) - min(counts) <= 1
    assert list(counts) == sorted(counts, reverse=True)


def test_a_schedule_is_rounds_and_steps() -> None:
    assert parse_schedule("once") == ONCE
    assert parse_schedule("3x200") == Schedule(3, 200)


@pytest.mark.parametrize("text", ["", "3", "1x5", "3x0", "x", "-2x3", "3x200x1", "twice"])
def test_what_is_no_schedule_is_said(text: str) -> None:
    with pytest.raises(UserError, match="ROUNDSxSTEPS"):
        parse_schedule(text)


def test_more_rounds_than_layers_are_refused() -> None:
    with pytest.raises(UserError, match="at most 2 rounds"):
        shares(2, 3)
