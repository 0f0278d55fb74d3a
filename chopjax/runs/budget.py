"""What healing may cost, and how many steps that makes. No jax."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from chopjax.errors import UserError
from chopjax.train.settings import MOST_STEPS

_SECONDS = {"h": 3600, "m": 60, "s": 1}


class Cost(NamedTuple):
    """Of a step, or of what came before the first one. seconds: 0.0 where they do not matter."""

    flops: float = 0.0
    seconds: float = 0.0


class Budget(NamedTuple):
    """So many FLOPs, or so many seconds of training steps."""

    amount: float
    is_time: bool

    def of(self, cost: Cost) -> float:
        """A cost in the budget's unit."""
        return cost.seconds if self.is_time else cost.flops

    def named(self) -> str:
        """The same text for the same budget, however it was written."""
        return f"{self.amount:.15g} {'seconds' if self.is_time else 'FLOPs'}"

    def shown(self, amount: float | None = None) -> str:
        """This amount of the budget's unit, for people; all of it by default."""
        amount = self.amount if amount is None else amount
        if not self.is_time:
            return re.sub(r"e\+0*", "e", f"{amount:.3g} FLOPs")
        return f"{amount / 3600:.3g} h" if amount >= 360 else f"{amount:.3g} s"


def parse_budget(text: str) -> Budget:
    """ "1e15" FLOPs, or "0.5h", "30m", "90s"."""
    match = re.fullmatch(r"\s*([0-9.]+(?:e\+?[0-9]{1,3})?)\s*(h|m|s|)\s*", text, re.IGNORECASE)
    try:
        number = float(match[1]) if match else math.nan
    except ValueError:
        number = math.nan
    if match is None or not 0 < number < math.inf:
        raise UserError(
            f"budget: {text!r} is neither FLOPs such as 1e15 nor a time such as 0.5h, 30m or 90s"
        )
    unit = match[2].lower()
    return Budget(number * _SECONDS.get(unit, 1), bool(unit))


class Plan(NamedTuple):
    """What a method's training costs: before its first step, and each of its steps."""

    method: str
    step: Cost
    before: Cost


def steps_within(budget: Budget, plans: Sequence[Plan]) -> list[int]:
    """How many steps each can make.

    Raises UserError where some cannot make one, with the least that all can begin with, and where
    one would make too many.
    """
    dearest = max(plans, key=lambda plan: budget.of(plan.before) + budget.of(plan.step))
    before, each = budget.of(dearest.before), budget.of(dearest.step)
    if before + each > budget.amount:
        first = f", {budget.shown(before)} before the first one" if before else ""
        raise UserError(
            f"budget: {budget.shown()} is less than a step of {dearest.method} takes "
            f"({budget.shown(each)}{first}); the least is {budget.shown(before + each)}"
        )
    steps = [
        math.floor((budget.amount - budget.of(plan.before)) / budget.of(plan.step))
        for plan in plans
    ]
    if max(steps) > MOST_STEPS:
        method = plans[steps.index(max(steps))].method
        raise UserError(
            f"budget: {budget.shown()} makes {max(steps):,} steps of {method}; at most "
            f"{MOST_STEPS:,}"
        )
    return steps
