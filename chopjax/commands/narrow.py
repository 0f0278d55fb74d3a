"""`chopjax narrow`: fewer hidden units and heads in a layer, as Minitron or LLM-Pruner choose."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from chopjax.commands.calibration import add_output, add_text, looked_at, print_losses
from chopjax.commands.flags import parse_bytes

EXAMPLE = """\
chopjax narrow PARENT narrower --mlp 0.5 --heads 0.25 --method gradient \\
    --data text.jsonl
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="folder of a Hugging Face checkpoint, or hub id owner/name")
    add("out", metavar="OUT", help="folder to write; it appears when it is complete")
    group = parser.add_argument_group("what goes, of every layer")
    add = group.add_argument
    add("--mlp", type=float, metavar="SHARE", help="of the feed-forward's hidden units")
    add(
        "--heads",
        type=float,
        metavar="SHARE",
        help="of the attention heads: key/value heads with all queries that read them",
    )
    add("--embed", type=float, metavar="SHARE", help="of the model's width, alike in all layers")
    add(
        "--method",
        required=True,
        metavar="NAME",
        help="activation, how large what units give is (Minitron); or gradient, how much the loss "
        "would change without them, to first order (LLM-Pruner)",
    )
    add_text(group, "is looked at", "1024 for activation, 10 for gradient")
    add_output(parser, "replace OUT if `chopjax narrow` wrote it and it holds nothing else")


def run(args: argparse.Namespace) -> int:
    from chopjax.errors import UserError

    max_shard_bytes = parse_bytes(args.max_shard_size, "--max-shard-size")
    if not args.data:
        raise UserError("--data FILE is needed: both methods look at text")

    from chopjax.narrow.narrow import NarrowSettings, narrow
    from chopjax.terminal import print_json

    shares = {"mlp": args.mlp, "heads": args.heads, "embed": args.embed}
    done = narrow(
        args.model,
        Path(args.out),
        NarrowSettings(
            {kind: share for kind, share in shares.items() if share is not None},
            args.method,
            args.sequences,
            args.sequence_length or 0,
        ),
        args.data,
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

    from chopjax.checkpoint.card_width import name_of
    from chopjax.errors import escaped
    from chopjax.terminal import console

    screen = console(soft_wrap=True)
    table = Table(
        "of every layer", "before", "after", "share gone",
        title=f"{escaped(done['out'])} (written)", title_justify="left",
    )  # fmt: skip
    for column in table.columns[1:]:
        column.justify = "right"
    rows = {name_of(kind, about): about for kind, about in done["units"].items()}
    for name, about in {**rows, "parameters of the model": done["parameters"]}.items():
        before, after = about["before"], about["after"]
        table.add_row(name, f"{before:,}", f"{after:,}", f"{1 - after / before:.4f}")
    screen.print(table)
    screen.print(looked_at(done))
    print_losses(screen, done)
    screen.print(f"{done['layers']} layers in {done['seconds']:.1f} s")
