"""The tables of accelerator.py, in Markdown."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]


def as_markdown(name: str, part: dict[str, Any]) -> str:
    """One part: its table, then its notes."""
    heads, lines = _TABLES[name]
    table = [heads, ["---"] * len(heads), *(line for row in part["rows"] for line in lines(row))]
    text = [f"## {name} ({part['seconds']:.0f} s)", ""]
    if part["rows"]:
        text += ["| " + " | ".join(_cell(cell) for cell in line) + " |" for line in table]
    text += ["", *(f"- {note}" for note in part["notes"])]
    return "\n".join(text) + "\n"


def _cell(value: Any) -> str:
    """As a table takes it."""
    return "" if value is None else str(value).replace("|", "\\|").replace("\n", " ")


def _outcome(row: Row) -> str | None:
    """Why there is nothing, if so."""
    if "error" in row:
        how = "stopped early" if "tokens_per_second" in row else "FAILED"
        return f"{how}: {row['error']}"
    return f"skipped: {row['skipped']}" if "skipped" in row else None


def _number(value: float | None, spelling: str) -> str | None:
    return None if value is None else format(value, spelling)


def _steps(row: Row) -> list[list[Any]]:
    says = [_outcome(row)]
    if "agrees" in row:
        says.append(f"{'' if row['agrees'] else 'LOSSES DIFFER: '}{row['apart']:.1e}")
    memory = row.get("memory")
    return [
        [
            row["side"],
            row["kind"],
            row["attention"],
            row["length"],
            _number(row.get("tokens_per_second"), ",.0f"),
            _number(row.get("ratio"), ".2f"),
            _number(row.get("mfu"), ".1%"),
            _number(memory and memory / 1e9, ".2f"),
            _number(row.get("prepared"), ".0f"),
            row.get("rounds"),
            "; ".join(each for each in says if each),
        ]
    ]


def _scored(row: Row) -> list[list[Any]]:
    says = [_outcome(row), row.get("says")]
    if "agreement" in row:
        found = row["agreement"]
        says.append(
            f"largest difference {found['nats']['largest']:.1e} nats, median "
            f"{found['nats']['median']:.1e}; is_greedy differs {found['is_greedy differs']} times, "
            f"{len(found['metrics differ'])} of {found['metrics']} metrics differ"
        )
    return [
        [
            row["task"],
            row.get("documents"),
            _number(row.get("ours"), ",.1f"),
            _number(row.get("peer"), ",.1f"),
            _number(row.get("ratio"), ".2f"),
            row.get("batch_size"),
            "; ".join(each for each in says if each),
        ]
    ]


def _timed(row: Row) -> list[list[Any]]:
    shape = f"{row['batch']} x {row['length']}"
    if (outcome := _outcome(row)) is not None:
        return [[shape, None, None, None, None, None, outcome]]
    models = [name for name in row if name not in ("batch", "length")]
    whole = row[models[0]]
    return [
        [
            shape,
            phase,
            name,
            _quartiles(timing),
            f"{whole[phase]['seconds'] / timing['seconds']:.2f}x",
            _number(timing["flops"] / timing["seconds"] / 1e12, ",.2f"),
            _number(timing["traffic"] / timing["seconds"] / 1e9, ",.0f"),
        ]
        for phase in whole
        for name in models
        for timing in [row[name][phase]]
    ]


def _quartiles(timing: dict[str, Any]) -> str:
    median, low, high = (1e3 * timing[name] for name in ("seconds", "low", "high"))
    return f"{median:.2f} ({low:.2f} to {high:.2f})"


def _parity(row: Row) -> list[list[Any]]:
    case = [row["H"], f"{row['N']} on {row['K']}", row["window"], "yes" if row["documents"] else ""]
    if (outcome := _outcome(row)) is not None:
        return [[*case, *[None] * 4, outcome]]
    cells = [
        f"{found['own']:.1e} (xla {found['xla']:.1e}, bound {found['bound']:.1e})"
        for found in (row["differences"][name] for name in _DIFFERENCES)
    ]
    return [[*case, *cells, f"{row['kernel']}: {'holds' if row['holds'] else 'DOES NOT HOLD'}"]]


_DIFFERENCES = ("value", "d query", "d key", "d value")
_STEP_HEADS = (
    "side,weights,attention,T,tokens/s,x torch,MFU,memory GB,s to prepare,rounds,loss apart"
)
_TABLES: dict[str, Any] = {
    "train": (_STEP_HEADS.split(","), _steps),
    "adapters": (_STEP_HEADS.split(","), _steps),
    "score": ("task,documents,ours/s,hf/s,ratio,hf's batch,agreement".split(","), _scored),
    "latency": ("B x T,phase,model,ms (quartiles),speed-up,TFLOP/s,GB/s".split(","), _timed),
    "parity": (
        ["head size", "heads", "window", "documents", *_DIFFERENCES, "outcome"],
        _parity,
    ),
}
