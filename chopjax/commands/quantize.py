"""`chopjax quantize`: weights in four or eight bits, in a checkpoint that others load."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from chopjax.commands.flags import add_max_shard_size, parse_bytes

EXAMPLE = """\
chopjax quantize healed healed-int4 --weights int4
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="folder of a Hugging Face checkpoint, or hub id owner/name")
    add("out", metavar="OUT", help="folder to write; it appears when it is complete")
    add(
        "--weights",
        required=True,
        choices=("int8", "int4", "fp8"),
        help="of the blocks' matrices: int8 and fp8 with a scale for every output, int4 with one "
        "for a group of its inputs",
    )
    add(
        "--group",
        type=int,
        metavar="N",
        help="inputs that share a scale of int4: 128, 64, 32 or 16 (default: the most that divide "
        "every width)",
    )
    add("--revision", metavar="REV", help="branch, tag or commit of a hub id (default: main)")
    add("--overwrite", action="store_true", help="replace OUT if `chopjax quantize` wrote it")
    add_max_shard_size(add)
    add("--json", action="store_true", help="print one JSON object instead of the table")


def run(args: argparse.Namespace) -> int:
    from chopjax.quantize.quantize import quantize_checkpoint
    from chopjax.terminal import print_json

    max_shard_bytes = parse_bytes(args.max_shard_size, "--max-shard-size")
    done = quantize_checkpoint(
        args.model,
        Path(args.out),
        args.weights,
        args.group,
        args.revision,
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

    table = Table(
        show_header=False, title=f"{escaped(done['out'])} (written)", title_justify="left"
    )
    before, after = done["bytes"]["before"], done["bytes"]["after"]
    shared = f"{done['group']} inputs of an output" if done["group"] else "an output"
    for name, value in (
        ("weights", f"{done['weights']} ({done['format']}), a scale for {shared}"),
        ("matrices", f"{done['matrices']:,}, {done['numbers']:,} weights"),
        ("the whole model", f"{done['parameters']:,} parameters"),
        ("bytes of tensors", f"{after:,}, before {before:,} ({after / before:.3f})"),
    ):
        table.add_row(name, value)
    screen = console(soft_wrap=True)
    screen.print(table)
    screen.print(f"{done['seconds']:.1f} s")
