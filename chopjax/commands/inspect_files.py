"""What `chopjax inspect` prints of models that it can chop alone or that are quantized, and the
table of model types."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from chopjax.commands.inspect_tables import bytes_of, history_facts, new_table

if TYPE_CHECKING:
    from chopjax.checkpoint.source import Files


def run_files(args: argparse.Namespace, files: Files) -> int:
    """What is known of it, and what keeps chopjax from more."""
    from chopjax.checkpoint.overview import overview
    from chopjax.errors import UserError
    from chopjax.terminal import print_json

    for flag in ("check", "sequence_length"):
        if getattr(args, flag):
            raise UserError(
                f"--{flag.replace('_', '-')} is for models that chopjax computes with, not for "
                f"{args.model}: {files.why}"
            )
    result = overview(files)
    if args.json:
        print_json(result)
    else:
        _print(result)
    return 0


def run_families(args: argparse.Namespace) -> int:
    from chopjax.checkpoint.family_table import refused, table
    from chopjax.errors import UserError
    from chopjax.terminal import print_json

    given = [
        flag
        for flag in ("model", "revision", "step", "sequence_length", "check")
        if getattr(args, flag) not in (None, False)
    ]
    if given:
        raise UserError(f"--families lists what chopjax knows; leave {', '.join(given)} out")
    if args.json:
        print_json({"families": table(), "refused": refused()})
    else:
        _print_families(table(), refused())
    return 0


def _print_families(rows: list[dict[str, Any]], refused: dict[str, str]) -> None:
    from rich.text import Text

    from chopjax.terminal import console

    screen = console()
    if not screen.is_terminal:
        screen = console(width=160)
    shown = new_table(
        "Model types", "model_type", "depth", "options of config.json", "per-layer fields"
    )
    for row in rows:
        per_layer = "\n".join(row["per_layer"]) or "-"
        if row["inside"]:
            per_layer = f"those of its language model, in {row['inside']}"
        shown.add_row(
            row["model_type"], row["depth"], Text(", ".join(row["options"]) or "-"), Text(per_layer)
        )
    screen.print(shown)
    screen.print(
        "depth compute: import, train, score, export and all else; chop: `chopjax chop` with a "
        "strategy by name or --keep. Lists with an entry a layer (layer_types and the like) follow "
        "in all of them."
    )
    screen.print()
    none = new_table("Not to be chopped by moving tensors", "model_type", "because")
    for name, reason in refused.items():
        none.add_row(name, reason)
    screen.print(none)


_DEPTHS = {
    "chop": "chop: layers can be removed, nothing can be computed",
    "compute": "compute: with the numbers that its codes stand for; chopped and scored as it is",
}


def _print(result: dict[str, Any]) -> None:
    from rich.text import Text

    from chopjax.errors import escaped
    from chopjax.terminal import console

    screen = console()
    if not screen.is_terminal:
        screen = console(width=160)
    revision = f" at {result['revision'][:12]}" if result["revision"] else ""
    facts = new_table(f"{escaped(result['model'])}{revision} ({result['kind']})", "", "")
    types = [f"{bytes_of(size)} in {dtype}" for dtype, size in result["bytes_by_dtype"].items()]
    rows = {
        "model_type": str(result["model_type"]),
        "depth": _DEPTHS[result["depth"]],
        "  because": result["why_not_computed"],
        "layers": _layers(result),
        "elements": f"{result['elements']:,} as stored",
        "size": f"{bytes_of(result['bytes'])}: {', '.join(types)}",
    }
    if result["quantization"]:
        rows["quantized"] = result["quantization"]
    for note in result["notes"][:-1]:  # the last says again what cannot be computed
        rows["note"] = note
    for name, value in (rows | history_facts(result["provenance"])).items():
        facts.add_row(name, Text(escaped(value)))
    screen.print(facts)
    screen.print()
    numbers = ("layers", "tensors", "size")
    tensors = new_table("Tensors", "tensor", *numbers[:2], "shape", "type", "size", right=numbers)
    for row in result["tensors"]:
        tensors.add_row(
            Text(row["name"]),
            "" if row["layers"] is None else str(row["layers"]),
            str(row["count"]),
            " x ".join(map(str, row["shape"])),
            row["dtype"],
            bytes_of(row["bytes"]),
        )
    screen.print(tensors)


def _layers(result: dict[str, Any]) -> str:
    """ "7", or "7: 2 sliding_attention, 1 full_attention, … (repeating after 3)"."""
    runs = result["layers"]
    if len(runs) == 1:
        return str(result["num_layers"])
    parts = [f"{run['count']} {', '.join(run['kind'])}" for run in runs]
    again = f" (repeating after {result['period']})" if result["period"] else ""
    return f"{result['num_layers']}: {'; '.join(parts)}{again}"
