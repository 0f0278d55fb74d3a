"""`chopjax run`: the whole pipeline."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from chopjax.commands.flags import add_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser, workdir="folder of the run; what is done there already is not done again")
    parser.add_argument(
        "--schedule",
        metavar="ROUNDSxSTEPS",
        help="remove the layers in rounds, with so many steps of healing between them, such as "
        "3x200, or once (default: what the recipe says, once); the same as --config.chop.schedule",
    )
    parser.add_argument(
        "--json", action="store_true", help="print report.json instead of the table"
    )


def run(args: argparse.Namespace) -> int:
    # The harness's bars would stand between ours. Read when tqdm is imported.
    os.environ.setdefault("TQDM_DISABLE", "1")

    from chopjax import pipeline
    from chopjax.score.model import use_compilation_cache
    from chopjax.train.config_file import load_config

    use_compilation_cache()

    workdir = Path(args.workdir).expanduser()
    schedule = [f"chop.schedule={args.schedule}"] if args.schedule else []
    report = pipeline.run(load_config(args.config, [*args.set, *schedule]), workdir)
    if args.json:
        print(json.dumps(report))
    else:
        _print(report, workdir)
    return 0


def _print(report: dict[str, Any], workdir: Path) -> None:
    from rich.console import Console

    from chopjax.report.comparison import columns_of_report, gap_sentence, rich_table

    columns = columns_of_report(report)
    console = Console()
    console.print(rich_table(columns))
    console.print(f"\n{gap_sentence(columns)}")
    length = report["settings"]["heal"]["data"]["sequence_length"]
    console.print(
        f"Document loss: every document whole, {report['held_out_tokens']:,} tokens. "
        f"Window loss: in healing's windows of {length} tokens."
    )
    console.print(f"Healed checkpoint: {workdir / 'healed'}", soft_wrap=True)
    console.print(f"Report: {workdir / 'report.json'}, {workdir / 'healing.png'}", soft_wrap=True)
