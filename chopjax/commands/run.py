"""`chopjax run`: the whole pipeline."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from chopjax import interrupts
from chopjax.commands.flags import add_budget, add_recipe, again
from chopjax.disk.files import expanded

EXAMPLE = """\
chopjax run --config configs/chop_and_heal.py --workdir runs/half \\
    --config.model=HuggingFaceTB/SmolLM-135M \\
    --config.text.train=corpus.jsonl --config.text.held_out=held_out.jsonl
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser, workdir="folder of the run; what is done there already is not done again")
    parser.add_argument(
        "--schedule",
        dest="set",
        action="append",
        type="chop.schedule={}".format,
        metavar="ROUNDSxSTEPS",
        help="remove the layers in rounds, with so many steps of healing between them, such as "
        "3x200, or once (default: what the recipe says, once); the same as --config.chop.schedule",
    )
    add_budget(parser, "what healing may cost")
    parser.add_argument(
        "--json", action="store_true", help="print report.json instead of the table"
    )


def run(args: argparse.Namespace) -> int:
    # The harness's bars would stand between ours. Read when tqdm is imported.
    os.environ.setdefault("TQDM_DISABLE", "1")

    from chopjax.runs import pipeline
    from chopjax.score.model import use_compilation_cache
    from chopjax.terminal import print_json
    from chopjax.train.config_file import load_config

    interrupts.advise("what is done is kept, and the same command goes on from there")
    use_compilation_cache()

    workdir = expanded(args.workdir)
    report = pipeline.run(load_config(args.config, args.set), workdir, again("run", args))
    if args.json:
        print_json(report)
    else:
        _print(report, workdir)
    return 0


def _print(report: dict[str, Any], workdir: Path) -> None:
    from chopjax.errors import escaped
    from chopjax.report.comparison import columns_of_report, rich_table, verdict
    from chopjax.terminal import console, show

    columns, place = columns_of_report(report), Path(escaped(str(workdir)))
    show(rich_table(columns))
    screen = console(soft_wrap=True)
    screen.print(f"\n{verdict(columns)}")
    length = report["settings"]["heal"]["data"]["sequence_length"]
    screen.print(
        f"Document loss: every document whole, {report['held_out_tokens']:,} tokens. "
        f"Window loss: in healing's windows of {length} tokens."
    )
    screen.print(f"Healed checkpoint: {place / 'healed'}")
    screen.print(f"Report: {place / 'report.html'}, {place / 'report.json'}")
