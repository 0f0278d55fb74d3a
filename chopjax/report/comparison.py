"""Parent, chopped and healed side by side: the table that a pipeline ends with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table


@dataclasses.dataclass(frozen=True)
class Column:
    """One model's figures. Losses are nats per token on the same held-out text."""

    name: str
    layers: int
    parameters: int
    bytes: int
    loss: float
    perplexity: float
    bits_per_byte: float
    accuracies: Mapping[str, tuple[float, float | None]]  # "task metric" → (value, stderr)
    latency_seconds: float


def gap_closed(columns: Sequence[Column]) -> float:
    """The share of the loss that chopping added and healing took away again; 1 is all of it.

    columns: parent, chopped, healed.
    """
    parent, chopped, healed = (column.loss for column in columns)
    return (chopped - healed) / (chopped - parent) if chopped != parent else float("nan")


def verdict(columns: Sequence[Column]) -> str:
    """What chopping did to the loss, and healing to that. columns: parent, chopped, healed."""
    parent, chopped, healed = (column.loss for column in columns)
    unit = "nats per token"
    if not chopped > parent:
        return (
            f"Chopping did not raise the loss ({chopped - parent:+.3f} {unit}); healed, it is "
            f"{healed - parent:+.3f} from the parent's."
        )
    chopping = f"Chopping added {chopped - parent:.3f} {unit}"
    if not healed < chopped:
        return f"{chopping}; healing took nothing of it away ({healed - chopped:+.3f})."
    return f"{chopping}; healing took away {gap_closed(columns):.0%} of it."


def rows(columns: Sequence[Column]) -> list[list[str]]:
    """The cells, row names first, for any rendering."""
    parent = columns[0]
    table = [
        ["layers", *(str(c.layers) for c in columns)],
        ["parameters", *(f"{c.parameters / 1e6:,.2f} M" for c in columns)],
        ["bytes", *(f"{c.bytes / 1e6:,.1f} MB" for c in columns)],
        ["held-out loss, nats/token", *(f"{c.loss:.4f}" for c in columns)],
        ["perplexity", *(f"{c.perplexity:.2f}" for c in columns)],
        ["bits per byte", *(f"{c.bits_per_byte:.4f}" for c in columns)],
    ]
    tasks = list(dict.fromkeys(task for column in columns for task in column.accuracies))
    table += [[task, *(_accuracy(c.accuracies.get(task)) for c in columns)] for task in tasks]
    table.append(["forward latency", *(f"{1e3 * c.latency_seconds:.1f} ms" for c in columns)])
    speedups = (f"{parent.latency_seconds / c.latency_seconds:.2f}x" for c in columns)
    table.append(["speed-up over parent", *speedups])
    return table


def _accuracy(value: tuple[float, float | None] | None) -> str:
    if value is None:
        return "–"
    mean, stderr = value
    return f"{mean:.3f}" if stderr is None else f"{mean:.3f} ± {stderr:.3f}"


def rich_table(columns: Sequence[Column]) -> Table:
    table = Table(box=None, header_style="bold")
    table.add_column("")
    for column in columns:
        table.add_column(column.name, justify="right")
    for row in rows(columns):
        table.add_row(*row)
    return table


def markdown_table(columns: Sequence[Column]) -> str:
    header = ["", *(column.name for column in columns)]
    lines = [header, ["---", *("---:" for _ in columns)], *rows(columns)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def as_json(columns: Sequence[Column]) -> dict[str, Any]:
    """Full precision, for report.json."""
    return {column.name: dataclasses.asdict(column) for column in columns}


def columns_of_report(report: Mapping[str, Any]) -> list[Column]:
    """The inverse of as_json, from what report.json holds."""
    return [Column(**fields) for fields in report["models"].values()]
