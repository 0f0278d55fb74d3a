"""A plan for people, on a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from chopjax.plan.topology import GIB
from chopjax.terminal import console

_PARTS = {
    "parameters": "parameters",
    "frozen": "parameters that are only read",
    "optimizer": "optimizer state",
    "gradients": "gradients",
    "batch": "batch",
    "activations": "activations and work space",
    "padding_and_code": "padding and program",
}
_TOO_LOW = (
    "all that follows is a lower bound, and MFU an upper one. Please report it, with the versions "
    "of jax and the compiler."
)


def show(plan: dict[str, Any]) -> None:
    """Print to standard output. Where it does not fit, the last line says so."""
    screen = console()
    shape = " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items() if size > 1)
    chips = f"{plan['chips']:,} chip{'s' if plan['chips'] > 1 else ''}"
    screen.print(
        f"{plan['topology']} ({plan['accelerator_type']}), {chips}; "
        f"mesh {shape or 'one device'}; attention {plan['attention']}",
    )
    if not plan["compiled"]:
        screen.print(f"Not compiled: {plan['not_compiled_because']}")
    for phase in plan["phases"]:
        _show_phase(screen, phase, plan)
    if not plan["fits"]:
        screen.rule()
        # One line, whatever the width of the terminal: people look at the end, scripts too.
        screen.print(_not_fitting(plan), soft_wrap=True)
        return
    table = Table(title="The run", show_header=False)
    table.add_row("tokens", _count(plan["token_budget"]))
    table.add_row("tokens a day", _count(plan["tokens_per_day"]))
    table.add_row("days", f"{plan['days']:,.2f}")
    table.add_row("chip-hours", f"{plan['chip_hours']:,.0f}")
    screen.print(table)
    screen.print(f"Model FLOPs: {plan['flops_formula']}. Assumed, so that this is the best case:")
    for assumption in plan["assumptions"]:
        screen.print(Padding(f"- {assumption}", (0, 0, 0, 2)))


def _show_phase(screen: Console, phase: dict[str, Any], plan: dict[str, Any]) -> None:
    name = f"{phase['name']}: {phase['layers']} layers, {_count(phase['parameters'])} parameters"
    if (active := phase["active_parameters"]) != phase["parameters"]:
        name += f" ({_count(active)} active)"
    screen.rule(f"{name}, {phase['steps']:,} steps")
    memory, limit = phase["memory"], phase["memory"]["limit"]
    table = Table(title=f"Memory of one chip ({plan['chip']['name']})", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for part, words in _PARTS.items():
        if part == "frozen" and not memory["frozen"]:
            continue
        words += " (rough estimate)" if part == "activations" and memory["estimated"] else ""
        if part == "padding_and_code" and plan["compiled"] and not phase["machine_code"]:
            words = "padding, and a reserve for the program"
        table.add_row(words, _size(memory[part]))
    table.add_section()
    table.add_row("in all", _size(memory["total"]))
    table.add_row("usable", _size(limit))
    screen.print(table)
    spare = limit - memory["total"]
    verdict = f"It fits, with {_size(spare)} to spare."
    if not phase["fits"]:
        verdict = f"It does not fit, by {_size(-spare)}." if spare < 0 else "It does not fit."
    screen.print(verdict, style="bold")
    if phase["refusal"]:
        screen.print(f"The compiler: {phase['refusal']}")
    if not phase["fits"]:
        screen.print(_advice(phase["knobs"]), soft_wrap=True)
    if phase["unknown_loops"]:
        screen.print(
            f"Loops of unknown length in the program: {phase['unknown_loops']}. They count once: "
            f"{_TOO_LOW}"
        )
    if phase["unknown_kernels"]:
        screen.print(
            f"Unknown kernels in the program: {', '.join(phase['unknown_kernels'])}. Their matrix "
            f"products do not count: {_TOO_LOW}"
        )
    if phase["collectives"]:
        screen.print(_collectives(phase))
    if plan["fits"]:
        screen.print(_times(phase))


def _not_fitting(plan: dict[str, Any]) -> str:
    """The largest of the phases that do not fit."""
    phases = [phase for phase in plan["phases"] if not phase["fits"]]
    phase = max(phases, key=lambda phase: phase["memory"]["total"])
    memory, chip = phase["memory"], plan["chip"]["name"]
    if memory["total"] <= memory["limit"]:
        return f"It does not fit on a {chip} chip ({phase['name']}): the compiler refuses it."
    return (
        f"It does not fit: {_size(memory['total'])} of {_size(memory['limit'])} on a {chip} chip "
        f"({phase['name']})."
    )


def _advice(knobs: list[dict[str, Any]]) -> str:
    if not knobs:
        return "No other setting makes it fit: take more chips, or shorter sequences."
    lines = [f"  {' '.join(knob['flags'])}   ({_size(knob['total'])})" for knob in knobs]
    if knobs[0]["compiled"]:
        return "\n".join(["It would fit, as the compiler agrees, with", *lines])
    return "\n".join(["Expected to make it fit, not compiled:", *lines])


def _count(number: float) -> str:
    for size, words in ((1e9, " billion"), (1e6, " million")):
        if number >= size:
            return f"{number / size:,.2f}{words}"
    return f"{number:,.0f}"


def _size(amount: int) -> str:
    return f"{amount / GIB:,.2f} GiB" if amount >= GIB / 10 else f"{amount / 2**20:,.2f} MiB"


def _collectives(phase: dict[str, Any]) -> Table:
    table = Table(title="Collectives of one step")
    table.add_column("kind")
    table.add_column("mesh axes")
    for column in ("count", "payload, GB", "sent by a chip, GB", "hidden"):
        table.add_column(column, justify="right")
    for row in phase["collectives"]:
        share = row["hidden"] / row["wire"] if row["wire"] else 0.0
        table.add_row(
            row["kind"],
            ", ".join(row["axes"]),
            f"{row['count']:,}",
            f"{row['payload'] / 1e9:,.3f}",
            f"{row['wire'] / 1e9:,.3f}",
            f"{100 * share:.0f} %",
        )
    return table


def _times(phase: dict[str, Any]) -> Table:
    table = Table(title="Time of one step, by the roofline", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("model FLOPs", f"{phase['flops_per_step']:.3e}")
    table.add_row("model FLOPs a chip", f"{phase['flops_per_step_and_chip']:.3e}")
    table.add_row("executed a chip", f"{phase['executed_flops_per_step_and_chip']:.3e}")
    words = {
        "compute": "matrix products",
        "hbm": "HBM",
        "operations": "operations, each by the longer of both",
        "hidden_collectives": "collectives, hidden",
        "exposed_collectives": "collectives, exposed",
    }
    for name, seconds in phase["seconds"].items():
        table.add_row(words[name], "not known" if seconds is None else _time(seconds))
    table.add_section()
    table.add_row("step", _time(phase["step_seconds"]))
    table.add_row("MFU", f"{100 * phase['mfu']:.1f} %")
    table.add_row("tokens per second", f"{phase['tokens_per_second']:,.0f}")
    return table


def _time(seconds: float) -> str:
    return f"{seconds:,.2f} s" if seconds >= 1 else f"{seconds * 1e3:,.3g} ms"
