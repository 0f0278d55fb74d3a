"""The rounds of `chopjax run`: what goes when, and where a round's work lies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from chopjax.chop.choice import LOOKS, by_list, by_name
from chopjax.chop.configurations import resolve_remove
from chopjax.chop.importance import check_count, parse_protect
from chopjax.keep import Keep
from chopjax.runs.schedule import parse_schedule, shares, split_keep
from chopjax.runs.settings import Model, PipelineSettings, parent_of


class Round(NamedTuple):
    """One removal of layers and the healing after it.

    number: from 1. suffix: of its stages' names; empty for the last round. model: what it chops.
    after: the stage that makes that model; empty for the parent. remove: how many layers go. keep:
    those that stay, in that model's numbering; None where what layers do will tell.
    """

    number: int
    suffix: str
    model: Model
    after: str
    folder: Path
    remove: int
    keep: Keep | None
    steps: int  # of healing

    @property
    def analysis(self) -> Path:
        return self.folder / "analysis"

    @property
    def chopped(self) -> Path:
        return self.folder / "chopped"

    @property
    def heal(self) -> Path:
        return self.folder / "heal"

    @property
    def healed(self) -> Path:
        return self.folder / "healed"


def rounds_of(settings: PipelineSettings, workdir: Path, num_layers: int) -> list[Round]:
    """What goes when. Raises UserError where so many layers cannot go."""
    chop, schedule = settings.chop, parse_schedule(settings.chop.schedule)
    keeps: Sequence[Keep | None]
    if chop.keep or chop.strategy not in LOOKS:
        chosen = (
            by_list(chop.keep, num_layers)
            if chop.keep
            else by_name(chop.strategy, chop.remove, num_layers)
        )
        keeps = split_keep(chosen.keep, num_layers, schedule.rounds)
        counts = shares(num_layers - len(chosen.keep), schedule.rounds)
    else:
        remove = resolve_remove(chop.remove, num_layers)
        check_count(chop.strategy, num_layers, remove, parse_protect(chop.protect))
        counts = shares(remove, schedule.rounds)
        keeps = [None] * schedule.rounds
    rounds: list[Round] = []
    for number, (count, keep) in enumerate(zip(counts, keeps, strict=True), 1):
        last = number == schedule.rounds
        rounds.append(
            Round(
                number=number,
                suffix="" if last else f"-{number}",
                model=Model(str(rounds[-1].healed)) if rounds else parent_of(settings),
                after=f"export{rounds[-1].suffix}" if rounds else "",
                folder=workdir if last else workdir / "rounds" / str(number),
                remove=count,
                keep=keep,
                steps=settings.heal.total_steps if last else schedule.steps,
            )
        )
    return rounds
