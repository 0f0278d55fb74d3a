"""The ways of making a chopped model good again that a sweep compares. No jax.

A method is `repair` (without training), a way of training, or both: `repair+full`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from chopjax.errors import UserError, did_you_mean
from chopjax.models.adapter_settings import AdapterSettings
from chopjax.train.settings import PARENT, TeacherSettings, changed
from chopjax.train.settings import Settings as HealSettings

REPAIR, FULL, SCRATCH = "repair", "full", "scratch"


class Way(NamedTuple):
    """A way of training: what of `heal` it decides, whatever that says.

    group: of a sweep's settings, with what else differs from `heal`. base: how the weights under
    adapters are held; empty: no adapters.
    """

    group: str = ""
    base: Literal["", "float", "nf4", "int8"] = ""
    from_scratch: bool = False
    taught: bool = False  # by a teacher, the parent unless `heal.teacher` says another


TRAINED = {
    FULL: Way(),
    "lora": Way("lora", base="float"),
    "qlora": Way("qlora", base="nf4"),
    "qlora-int8": Way("qlora", base="int8"),
    "distill": Way("distill", taught=True),
    SCRATCH: Way("scratch", from_scratch=True),
}
GROUPS = tuple(dict.fromkeys(way.group for way in TRAINED.values() if way.group))
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
    """How a method trains. overrides: group → what differs from `heal`, nested.

    Raises UserError with every override that is no setting, or not of its type, where windows of
    held-out text would differ, and where adapters have no rank.
    """
    way = TRAINED[method.trained]
    own = changed(heal, overrides.get(way.group, {}), f"{way.group}.")
    windows = ("sequence_length", "mask_documents")
    if own_windows := [n for n in windows if getattr(own.data, n) != getattr(heal.data, n)]:
        raise UserError(
            f"{way.group}.data.{own_windows[0]}: the same for all methods, whose losses would not "
            "be comparable else; set heal.data"
        )
    adapter = AdapterSettings()
    if way.base:
        adapter = dataclasses.replace(own.adapter, base=way.base)
        if adapter.rank < 1:
            raise UserError(
                f"{method.name}: adapter.rank is {adapter.rank}; give heal.adapter.rank, or "
                f"{way.group}.adapter.rank, at least 1"
            )
    teacher = TeacherSettings()
    if way.taught:
        teacher = dataclasses.replace(own.teacher, model=own.teacher.model or PARENT)
    return dataclasses.replace(own, from_scratch=way.from_scratch, adapter=adapter, teacher=teacher)
