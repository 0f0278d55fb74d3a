"""`chopjax quantize`: weights in four or eight bits, in a checkpoint that others load."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from chopjax import interrupts
from chopjax.commands.calibration import add_output, add_text, looked_at, print_losses
from chopjax.commands.flags import parse_bytes
from chopjax.errors import UserError

EXAMPLE = """\
chopjax quantize healed healed-int8 --weights int8
chopjax quantize healed healed-int4 --weights int4 --method gptq \\
    --data text.jsonl
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
    group = parser.add_argument_group("which codes")
    group.add_argument(
        "--method",
        choices=("nearest", "gptq"),
        default="nearest",
        help="nearest, of every weight by itself; or gptq, where later weights make up for the "
        "error of those before them (default: nearest)",
    )
    add_text(group, "gptq looks at", "128")
    add_output(parser, "replace OUT if `chopjax quantize` wrote it, and unfinished work on it")


def run(args: argparse.Namespace) -> int:
    max_shard_bytes = parse_bytes(args.max_shard_size, "--max-shard-size")
    given = {name: getattr(args, name) for name in ("field", "sequences", "sequence_length")}
    given = {name: value for name, value in given.items() if value is not None}
    if args.method == "nearest" and (args.data or given):
        raise UserError("--data and what goes with it is for --method gptq")
    if args.method == "gptq" and not args.data:
        raise UserError("--method gptq looks at what matrices read: give --data FILE")

    from chopjax.terminal import print_json

    common = {
        "group": args.group,
        "revision": args.revision,
        "overwrite": args.overwrite,
        "max_shard_bytes": max_shard_bytes,
    }
    out = Path(args.out)
    if args.method == "gptq":
        from chopjax.quantize.by_text import quantize_by_text

        interrupts.advise("layers that are done are kept, and the same command goes on from there")
        done = quantize_by_text(args.model, out, args.weights, args.data, **given, **common)
    else:
        from chopjax.quantize.quantize import quantize_checkpoint

        done = quantize_checkpoint(args.model, out, args.weights, **common)
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
        ("codes", done["method"]),
        ("matrices", f"{done['matrices']:,}, {done['numbers']:,} weights"),
        ("the whole model", f"{done['parameters']:,} parameters"),
        ("bytes of tensors", f"{after:,}, before {before:,} ({after / before:.3f})"),
    ):
        table.add_row(name, value)
    screen = console(soft_wrap=True)
    screen.print(table)
    if "loss" in done:
        screen.print(looked_at(done))
        print_losses(screen, done, "quantized")
    screen.print(f"{done['seconds']:.1f} s")
