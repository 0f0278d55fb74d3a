"""What a search has found, on a terminal."""

from __future__ import annotations

from rich.table import Table

from chopjax.plan.search import Candidate, Found, flags
from chopjax.plan.topology import GIB
from chopjax.terminal import console, show
from chopjax.train.settings import Settings


def show_search(found: list[Found], settings: Settings, limit: int) -> None:
    """A table for each phase, in order of speed; at the end the best as flags. limit: bytes that a
    chip has."""
    screen = console()
    for each in found:
        if each.tried:
            show(_table(each, limit))
    if not all(each.complete for each in found):
        screen.print("The search was stopped: there may be better ones.")
    for each in found:
        if each.best is not None and each.tried[0].fits:
            faster = each.tried[0].step_seconds / each.best.step_seconds
            screen.print(f"{each.phase.name}: {faster:.3f} times as fast as the recipe's settings")
        elif each.best is None and each.complete:
            screen.print(f"{each.phase.name}: nothing fits; take more chips, or shorter sequences")
    best = flags(found, settings)
    # One line, whatever the terminal's width: it is copied.
    screen.print(" ".join(best) or "The recipe's settings are the best.", soft_wrap=True)


def _table(found: Found, limit: int) -> Table:
    phase = found.phase
    title = f"{phase.name}, {phase.model.num_layers} layers: settings of {phase.group}"
    table = Table(title=f"{title}; {limit / GIB:.1f} GiB usable")
    table.add_column("remat")
    numbers = ("microbatches", "loss chunk", "layers", "gather", "GiB", "step, s", "exposed, s")
    for column in (*numbers, "MFU at most", ""):
        table.add_column(column, justify="right")
    for one in sorted(found.tried, key=lambda one: (one.step_seconds, one.total)):
        table.add_row(*_row(one), _mark(one, found))
    return table


def _row(one: Candidate) -> list[str]:
    times = ["does not fit", "", ""]
    if one.fits:
        exposed = "" if one.exposed_seconds is None else f"{one.exposed_seconds:.3g}"
        times = [f"{one.step_seconds:.4g}", exposed, f"{100 * (one.mfu or 0):.1f} %"]
    return [*map(str, one.choice), f"{one.total / GIB:.1f}", *times]


def _mark(one: Candidate, found: Found) -> str:
    marks = {"recipe": one is found.tried[0], "best": one is found.best}
    return ", ".join(name for name, holds in marks.items() if holds)
