"""`chopjax analyze`: which layers matter, and which to remove for every number of them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from chopjax.commands.flags import add_mesh

EXAMPLE = """\
chopjax analyze PARENT --data held_out.jsonl --output analysis
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="folder of a checkpoint, or hub id owner/name")
    add(
        "--data",
        required=True,
        action="append",
        metavar="FILE",
        help="calibration text: .jsonl, .txt, a folder or hf:NAME; may be given several times",
    )
    add("--output", required=True, metavar="DIR", help="folder for numbers and plots")
    add("--revision", metavar="REV", help="branch, tag or commit of a hub id (default: main)")
    add("--overwrite", action="store_true", help="replace DIR if `chopjax analyze` wrote it")
    add("--json", action="store_true", help="print analysis.json's object instead of the table")
    add = parser.add_argument_group("text").add_argument
    add("--field", default="text", help="of a JSON line, the field with the text (default: text)")
    add("--sequences", type=int, default=128, metavar="N", help="documents to use (default: 128)")
    add(
        "--sequence-length",
        type=int,
        default=0,
        metavar="T",
        help="tokens of each at most (default: the context length, at most 2048)",
    )
    add("--seed", type=int, default=0, help="which documents are drawn (default: 0)")
    add = parser.add_argument_group("measures").add_argument
    add(
        "--measures",
        metavar="LIST",
        help="some of similarity,taylor,perplexity,sleb,choices (default: all). similarity gives "
        "block influence and relative magnitude, too; choices is the loss of every strategy's "
        "choice and the recommendation",
    )
    add(
        "--every-token",
        action="store_true",
        help="angular distance as a mean over all tokens, not over the last of each sequence",
    )
    add(
        "--protect",
        default="1,1",
        metavar="F,L",
        help="the first F and the last L layers are never chosen by a measure (default: 1,1)",
    )
    add = parser.add_argument_group("computation").add_argument
    add("--batch-size", type=int, default=8, metavar="B", help="sequences at once (default: 8)")
    add(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of activations (default: float32)",
    )
    add_mesh(add)


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from chopjax.chop.analysis import MEASURES, AnalysisSettings, analyze, write_analysis
    from chopjax.chop.importance import parse_protect
    from chopjax.disk.atomic import check_free
    from chopjax.report.layers import save_all
    from chopjax.terminal import print_json

    settings = AnalysisSettings(
        sequences=args.sequences,
        sequence_length=args.sequence_length,
        batch_size=args.batch_size,
        measures=tuple(args.measures.split(",")) if args.measures else MEASURES,
        every_token=args.every_token,
        protect=parse_protect(args.protect),
        dtype=args.dtype,
        seed=args.seed,
        fsdp=args.fsdp,
        tensor=args.tensor,
    )
    out = Path(args.output)
    check_free(out, "analyze", args.overwrite)  # before measuring, which takes its time
    analysis = analyze(args.model, args.data, settings, args.revision, args.field)
    figures = write_analysis(out, analysis, save_all, args.overwrite)
    if args.json:
        print_json(analysis)
    else:
        _print(analysis, out, figures)
    return 0


def _print(analysis: Mapping[str, Any], out: Any, figures: list[str]) -> None:
    from rich.table import Table

    from chopjax.errors import escaped
    from chopjax.terminal import console, show

    screen = console(soft_wrap=True)
    if "recommended" in analysis:
        screen.print(
            f"{escaped(analysis['model'])}: the choice with the lowest loss for every number of "
            "layers removed, before healing"
        )
        screen.print(
            f"nats per token on {analysis['predicted_tokens']:,} tokens; whole model "
            f"{analysis['parent_loss']:.4f}"
        )
        table = Table("removed", "layers to remove", "by", "loss", "added", box=None)
        for column in (0, 3, 4):
            table.columns[column].justify = "right"
        for count, choice in analysis["recommended"].items():
            loss = choice["loss"]
            added = f"{loss - analysis['parent_loss']:+.4f}"
            by = ", ".join(choice["strategies"])
            table.add_row(count, choice["remove"], by, f"{loss:.4f}", added)
        show(table)
    screen.print(
        f"{escaped(str(out))}: analysis.json, analysis.npz, {', '.join(figures)} (.png and .svg)"
    )
