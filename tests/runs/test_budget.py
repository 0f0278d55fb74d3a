"""Budgets as people write them, and the steps that they make."""

from __future__ import annotations

import pytest

from chopjax.errors import UserError
from chopjax.runs.budget import Budget, Cost, Plan, parse_budget, steps_within


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("1e15", Budget(1e15, False)),
        ("2.5E+14", Budget(2.5e14, False)),
        (" 30000 ", Budget(3e4, False)),
        ("0.5h", Budget(1800, True)),
        ("30m", Budget(1800, True)),
        ("90 s", Budget(90, True)),
        ("1e1H", Budget(36_000, True)),
    ],
)
def test_flops_and_times(text: str, budget: Budget) -> None:
    assert parse_budget(text) == budget
    assert parse_budget(text).named() == budget.named()


@pytest.mark.parametrize(
    "text", ["0", "0h", "-1", "1e", "h", "", "nan", "inf", "1e999", "1d", "1.2.3"]
)
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(UserError, match="neither FLOPs such as 1e15 nor a time"):
        parse_budget(text)


STEP = Cost(100.0, 2.0)
FREE = Cost()


def test_steps_are_what_fits_behind_what_comes_first() -> None:
    plans = [Plan("full", STEP, FREE), Plan("repair+full", STEP, Cost(150, 3.0))]
    assert steps_within(Budget(450, False), plans) == [4, 3]
    assert steps_within(Budget(9, True), plans) == [4, 3]
    assert steps_within(Budget(100, False), plans[:1]) == [1]


def test_the_least_is_what_lets_every_method_begin() -> None:
    plans = [Plan("full", STEP, FREE), Plan("repair+full", STEP, Cost(150, 3.0))]
    with pytest.raises(UserError) as refused:
        steps_within(Budget(50, False), plans)
    assert "50 FLOPs is less than a step of repair+full" in str(refused.value)
    assert "100 FLOPs, 150 FLOPs before the first one); the least is 250 FLOPs" in str(
        refused.value
    )
    with pytest.raises(UserError, match=r"less than a step of full .*the least is 2 s"):
        steps_within(Budget(1, True), plans[:1])
    with pytest.raises(UserError, match=r"makes 100,000,000 steps of full; at most 10,000,000"):
        steps_within(Budget(1e10, False), plans)


@pytest.mark.parametrize(
    ("budget", "shown"),
    [
        (Budget(1.5e15, False), "1.5e15 FLOPs"),
        (Budget(1800, True), "0.5 h"),
        (Budget(3, True), "3 s"),
    ],
)
def test_for_people(budget: Budget, shown: str) -> None:
    assert budget.shown() == shown
