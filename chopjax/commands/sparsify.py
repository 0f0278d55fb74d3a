"""`chopjax sparsify`: zeros in the blocks' matrices, by magnitude, Wanda or SparseGPT."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from chopjax import interrupts
from chopjax.commands.calibration import add_output, add_text, looked_at, print_losses
from chopjax.commands.flags import parse_bytes
from chopjax.errors import UserError

EXAMPLE = """\
chopjax sparsify PARENT sparse --method sparsegpt --pattern 2:4 \\
    --data text.jsonl
chopjax sparsify PARENT smallest --method magnitude --pattern 0.5
"""
_DEFAULTS = {"sequences": 128, "sequence_length": 0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="folder of a Hugging Face checkpoint, or hub id owner/name")
    add("out", metavar="OUT", help="folder to write; it appears when it is complete")
    group = parser.add_argument_group("which weights")
    add = group.add_argument
    add(
        "--method",
        required=True,
        metavar="NAME",
        help="magnitude, wanda or sparsegpt; the last changes the weights that stay, too",
    )
    add(
        "--pattern",
        required=True,
        metavar="PATTERN",
        help="2:4 or 4:8, half of every so many consecutive inputs, or a share such as 0.5, "
        "anywhere in a matrix",
    )
    add_text(group, "wanda and sparsegpt look at", "128")
    add_output(parser, "replace OUT if `chopjax sparsify` wrote it, and unfinished work on it")


def run(args: argparse.Namespace) -> int:
    from chopjax.sparsify.pattern import parse_pattern

    pattern = parse_pattern(args.pattern)
    max_shard_bytes = parse_bytes(args.max_shard_size, "--max-shard-size")
    if not args.data:
        for name in ("field", *_DEFAULTS):
            if getattr(args, name) is not None:
                raise UserError(f"--{name.replace('_', '-')} is for --data")
    given = {name: getattr(args, name) for name in _DEFAULTS}
    how = {name: _DEFAULTS[name] if value is None else value for name, value in given.items()}

    from chopjax.sparsify.sparsify import SparsifySettings, sparsify
    from chopjax.terminal import print_json

    interrupts.advise("layers that are done are kept, and the same command goes on from there")
    done = sparsify(
        args.model,
        Path(args.out),
        SparsifySettings(args.method, pattern, **how),
        args.data or (),
        args.revision,
        args.field or "text",
        args.overwrite,
        max_shard_bytes,
    )
    if args.json:
        print_json(done)
    else:
        _print(done)
    return 0


def _print(done: dict[str, Any]) -> None:
    from rich.table import Table

    from chopjax.errors import escaped
    from chopjax.terminal import console

    screen = console(soft_wrap=True)
    table = Table(
        "", "weights", "zeros", "share", title=f"{escaped(done['out'])} (written)",
        title_justify="left",
    )  # fmt: skip
    for column in table.columns[1:]:
        column.justify = "right"
    kinds = {kind: (about["zeros"], about["weights"]) for kind, about in done["kinds"].items()}
    rows = kinds | {
        "all of these": (done["zeros"], done["weights"]),
        "the whole model": (done["zeros"], done["parameters"]),
    }
    for name, (zeros, weights) in rows.items():
        table.add_row(name, f"{weights:,}", f"{zeros:,}", f"{zeros / weights:.4f}")
    screen.print(table)
    if "loss" in done:
        weights_alone = done["method"] == "magnitude"
        screen.print("looked at weights alone" if weights_alone else looked_at(done))
        print_losses(screen, done)
    screen.print(f"{done['layers']} layers in {done['seconds']:.1f} s")
