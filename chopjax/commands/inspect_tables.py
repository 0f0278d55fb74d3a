"""What both kinds of `chopjax inspect` print with."""

from __future__ import annotations

from typing import Any


def new_table(title: str, *columns: str, right: tuple[str, ...] = ()) -> Any:
    """A table that wraps rather than cuts; `right` names the columns of numbers."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(title, style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_header=any(columns),
        show_edge=False,
    )
    for column in columns:
        justify: Any = "right" if column in right else "left"
        table.add_column(column, justify=justify, overflow="fold")
    return table


def bytes_of(count: float) -> str:
    """In units of a thousand, as disks and download counters have them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:,.4g} TB"


def history_facts(record: dict[str, Any] | None) -> dict[str, str]:
    """What chopjax did to it, from chopjax.json."""
    from chopjax.checkpoint.card_changes import facts as changes
    from chopjax.checkpoint.card_classification import facts as taught
    from chopjax.checkpoint.provenance import CHOP, CLASSIFICATION, TRAINING, entries
    from chopjax.keep import ranges

    if record is None:
        return {}
    parent, facts = record["parent"]["name"], {}
    if entries(record, CHOP):
        kept = ranges(record["kept_layers"])
        facts["chopped"] = f"from {parent}, {record['strategy']}: layers {kept}"
    for entry in record["history"]:
        for name, value in changes(entry, record["history"]):
            often = sum(known.partition(" (")[0] == name for known in facts)
            facts[f"{name} ({often + 1})" if often else name] = value
    for number, entry in enumerate(entries(record, TRAINING), 1):
        loss = (entry.get("held_out") or {}).get("window_loss")
        measured = "" if loss is None else f"; window loss {loss:.4f} nats per token"
        facts["trained" if number == 1 else f"  and again ({number})"] = (
            f"{entry.get('steps')} steps, {entry.get('tokens')} tokens, "
            f"{(entry.get('optimizer') or {}).get('name')}, {entry.get('kind')}{measured}"
        )
    for entry in entries(record, CLASSIFICATION):
        facts |= taught(entry)
    return facts
