"""Parent, chopped and healed side by side: the table that a pipeline ends with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table


@dataclasses.dataclass(frozen=True)
class Column:
    """One model's figures.

    document_loss, window_loss: nats per token on the same held-out text, in two ways: every
    document on its own and whole (perplexity and bits per byte come from this one), and in windows
    of the training length, as healing measures it. texts: name → figures of `chopjax perplexity`.
    """

    name: str
    layers: int
    parameters: int
    bytes: int
    document_loss: float
    window_loss: float
    perplexity: float
    bits_per_byte: float
    accuracies: Mapping[str, tuple[float, float | None]]  # "task metric" → (value, stderr)
    texts: Mapping[str, Mapping[str, Any]]
    latency_seconds: float


def gap_closed(columns: Sequence[Column]) -> float:
    """The share of the document loss that chopping added and healing took away again; 1 is all.

    columns: parent, chopped, healed.
    """
    parent, chopped, healed = (column.document_loss for column in columns)
    return (chopped - healed) / (chopped - parent) if chopped != parent else float("nan")


def verdict(columns: Sequence[Column]) -> str:
    """What chopping did to the document loss, and healing to that. columns: parent, chopped,
    healed."""
    parent, chopped, healed = (column.document_loss for column in columns)
    unit = "nats per token"
    if not chopped > parent:
        return (
            f"Chopping did not raise the document loss ({chopped - parent:+.3f} {unit}); healed, "
            f"it is {healed - parent:+.3f} from the parent's."
        )
    chopping = f"Chopping added {chopped - parent:.3f} {unit} of document loss"
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
        ["document loss, nats/token", *(f"{c.document_loss:.4f}" for c in columns)],
        ["perplexity", *(f"{c.perplexity:.2f}" for c in columns)],
        ["bits per byte", *(f"{c.bits_per_byte:.4f}" for c in columns)],
        ["window loss, nats/token", *(f"{c.window_loss:.4f}" for c in columns)],
    ]
    for text in dict.fromkeys(text for column in columns for text in column.texts):
        figures = [column.texts.get(text) for column in columns]
        table.append(
            [f"{text}, perplexity", *(f"{t['perplexity']:.2f}" if t else "–" for t in figures)]
        )
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


MEASURED = """\
## Measured

{table}

{gap}

Document loss, perplexity and bits per byte are over {tokens:,} tokens of {held_out} by this model's
own tokenizer: {document_loss}.
Window loss is healing's own measure of the same text: {window_loss}.
{accuracy}{texts}
Latency is the median of a forward pass over {batch} x {length} tokens on {device}."""


def measured(columns: Sequence[Column], about: Mapping[str, Any]) -> str:
    """Markdown.

    columns: parent, chopped, healed. about: held_out, tokens, document_loss and window_loss (their
    conventions), batch, length, device.
    """
    conventions: dict[str, list[str]] = {}
    for name, figures in columns[0].texts.items():
        conventions.setdefault(figures["convention"], []).append(name)
    return MEASURED.format(
        table=markdown_table(columns),
        gap=verdict(columns),
        accuracy="Accuracies are by lm-evaluation-harness's definitions, ± one standard error.\n"
        if any(column.accuracies for column in columns)
        else "",
        texts="".join(
            f"Perplexity of {', '.join(names)}: "
            f"{'as above' if said == about['document_loss'] else said}.\n"
            for said, names in conventions.items()
        ),
        **about,
    )
