"""The ways of making a chopped model good again that a sweep compares. No jax.

A method is `repair` (without training), a way of training, or both: `repair+full`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from chopjax.errors import UserError, did_you_mean
from chopjax.train.settings import Settings as HealSettings
from chopjax.train.settings import changed

REPAIR, FULL, SCRATCH = "repair", "full", "scratch"
# How each way of training differs from `heal`, whatever that says.
TRAINED: dict[str, dict[str, Any]] = {
    FULL: {"from_scratch": False},
    SCRATCH: {"from_scratch": True},
}
# Of random weights nothing is to be repaired.
KNOWN = (REPAIR, *TRAINED, *(f"{REPAIR}+{name}" for name in TRAINED if name != SCRATCH))


class Method(NamedTuple):
    """trained: one of TRAINED; empty where nothing is. Neither: chopped and no more."""

    repaired: bool = False
    trained: str = ""

    @property
    def name(self) -> str:
        return "+".join(filter(None, (REPAIR if self.repaired else "", self.trained)))


CHOPPED = Method()


def parse_method(name: str) -> Method:
    """Raises UserError where there is no such method."""
    if name not in KNOWN:
        raise UserError(
            f"methods: {name!r} is not one of {', '.join(KNOWN)}{did_you_mean(name, KNOWN)}"
        )
    first, _, second = name.partition("+")
    return Method(first == REPAIR, second if first == REPAIR else first)


def heal_settings(
    heal: HealSettings, method: Method, overrides: Mapping[str, Mapping[str, Any]]
) -> HealSettings:
    """How a method trains. overrides: way of training → what differs from `heal`, nested.

    Raises UserError with every override that is no setting, or not of its type.
    """
    own = changed(heal, overrides.get(method.trained, {}), f"{method.trained}.")
    return dataclasses.replace(own, **TRAINED[method.trained])
