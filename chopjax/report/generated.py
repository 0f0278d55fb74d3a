"""What generating text took, and what a draft brought."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from chopjax.generate.run import Clock
from chopjax.progress import say
from chopjax.score.drafting import FIRST_LENGTH, ROUNDS, Drafting
from chopjax.terminal import console


def summary(
    model: str, prompts: int, clock: Clock, drafting: Drafting | None, named: str | None
) -> dict[str, Any]:
    """The last line of --json. named: the draft, for people."""
    draft = {"name": named, **figures(drafting)} if drafting and drafting.pace else None
    return {
        "model": model,
        "prompts": prompts,
        "resumed": prompts - clock.prompts,
        "tokens": clock.tokens,
        "seconds": clock.seconds,
        "tokens_per_second": clock.tokens_per_second,
        "draft": draft,
    }


def figures(drafting: Drafting) -> dict[str, Any]:
    """Of drafting that has begun. What was not measured, since texts ended before, is None."""
    pace = drafting.pace
    assert pace is not None
    measured = bool(pace.round)
    return {
        "length": drafting.length,
        "cost": pace.cost,
        "tokens_per_round": pace.tokens_a_round if measured else None,
        "acceptance": pace.acceptance if measured else None,
        "ratio": pace.gain if measured else None,
        "best_length": pace.best_length() if measured else None,
    }


def show(said: dict[str, Any]) -> None:
    """A summary, on standard error: the text is the result."""
    table = Table(box=None, show_header=False)
    if said["resumed"]:
        table.add_row("prompts of an earlier run", f"{said['resumed']:,}")
    table.add_row("new tokens", f"{said['tokens']:,}")
    table.add_row("tokens/s", f"{said['tokens_per_second']:.1f}")
    if draft := said["draft"]:
        table.add_row("draft", draft["name"])
        length = draft["length"] or f"{FIRST_LENGTH} for {ROUNDS} rounds, then none"
        table.add_row("tokens of a draft", str(length))
        table.add_row("a draft token's cost c", f"{draft['cost']:.3f} of the model's")
        if draft["ratio"] is None:
            table.add_row("acceptance α", "not measured: there were too few rounds")
        else:
            table.add_row("accepted length", f"{draft['tokens_per_round']:.2f} tokens a round")
            table.add_row("acceptance α", f"{draft['acceptance']:.3f}")
            faster = f"{draft['ratio']:.2f}x its speed, measured in this run"
            table.add_row("to plain decoding", faster)
    console(stderr=True).print(table)
    if draft and draft["best_length"] == 0:
        say(
            "There is nothing to win with this draft: it costs as much as it brings (α must be "
            "well above c)."
        )
