"""The tables of tpu_compile.py, in Markdown."""

from __future__ import annotations

from typing import Any

from chopjax.plan.topology import GIB

Row = dict[str, Any]

HEADS = (
    "program", "state and batch, GiB", "temporaries, GiB", "in all, GiB", "FLOPs / model's",
    "HBM, GB", "collectives exposed / hidden, ms", "step, s", "MFU at most", "compiling, CPU s",
)  # fmt: skip
# Ours against MaxText's: the names of both rows, and the ratio that is aimed at.
RATIOS = (
    ("as shipped", "tuned", 0.97),
    ("tuned", "tuned", 0.97),
    ("with options", "tuned", 0.95),
    ("with options", "with options", 0.95),
)


def as_text(rows: list[Row]) -> str:
    """Of one slice: programs, collectives, ratios, settings."""
    first = rows[0]
    lines = [f"## {first['topology']}, {first['layers']} layers", ""]
    lines += _table(HEADS, [_program(row) for row in rows])
    heads = ("program", "collective", "mesh axes", "count", "payload, GB", "exposed / hidden, GB")
    lines += ["", *_table(heads, [cells for row in rows for cells in _collectives(row)]), ""]
    lines += [f"- {line}" for line in ratios(rows)]
    for row in rows:
        text = f"{_name(row)}: {' '.join(row['settings']) or 'no settings'}"
        if not row["fits"]:
            text += f". The compiler: {row['refusal']}"
        elif row["unread"]:
            text += f". NOT ALL OF IT READ: {', '.join(row['unread'])}"
        lines.append(f"- {text}")
    for side in dict.fromkeys(row["side"] for row in rows):
        versions = next(row["versions"] for row in rows if row["side"] == side)
        lines.append(f"- {side}: {', '.join(f'{name} {v}' for name, v in versions.items())}")
    return "\n".join(lines) + "\n"


def ratios(rows: list[Row]) -> list[str]:
    """Steps of ours over MaxText's, one line each."""
    steps = {(row["side"], row["name"]): row["step_seconds"] for row in rows if row["fits"]}
    return [
        f"chopjax {ours} / MaxText {theirs}: {steps[a] / steps[b]:.3f} (aim: {aim} or less)"
        for ours, theirs, aim in RATIOS
        if (a := ("chopjax", ours)) in steps and (b := ("MaxText", theirs)) in steps
    ]


def _name(row: Row) -> str:
    return f"{row['side']}, {row['name']}"


def _program(row: Row) -> list[str]:
    if not row["fits"]:
        return [_name(row), "", "", "refused", *[""] * 6]
    memory = row["memory"]
    exposed, hidden = (1e3 * row[f"{which}_collectives_seconds"] for which in ("exposed", "hidden"))
    return [
        _name(row),
        f"{memory['arguments'] / GIB:.1f}",
        f"{memory['temporaries'] / GIB:.1f}",
        f"{memory['total'] / GIB:.1f} of {row['usable'] / GIB:.1f}",
        f"{row['flops_over_model']:.3f}",
        f"{row['hbm_bytes'] / 1e9:,.0f}",
        f"{exposed:.0f} / {hidden:.0f}",
        f"{row['step_seconds']:.3f}",
        f"{100 * row['mfu']:.1f} %",
        f"{row['compile_cpu_seconds']:.0f}",
    ]


def _collectives(row: Row) -> list[list[str]]:
    return [
        [
            _name(row),
            each["kind"],
            ", ".join(each["axes"]),
            f"{each['count']:,}",
            f"{each['payload'] / 1e9:.2f}",
            f"{(each['wire'] - each['hidden']) / 1e9:.2f} / {each['hidden'] / 1e9:.2f}",
        ]
        for each in row.get("collectives", [])
    ]


def _table(heads: tuple[str, ...], lines: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in [heads, ["---"] * len(heads), *lines]]
