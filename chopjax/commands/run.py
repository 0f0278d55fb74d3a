"""`chopjax run`: the whole pipeline."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from chopjax.commands.flags import add_recipe
from chopjax.paths import expanded


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
    from chopjax.report.terminal import print_json
    from chopjax.score.model import use_compilation_cache
    from chopjax.train.config_file import load_config

    use_compilation_cache()

    workdir = expanded(args.workdir)
    schedule = [f"chop.schedule={args.schedule}"] if args.schedule else []
    report = pipeline.run(load_config(args.config, [*args.set, *schedule]), workdir)
    if args.json:
        print_json(report)
    else:
        _print(report, workdir)
    return 0


def _print(report: dict[str, Any], workdir: Path) -> None:
    from chopjax.errors import escaped
    from chopjax.report.comparison import columns_of_report, gap_closed, rich_table
    from chopjax.report.terminal import console

    columns = columns_of_report(report)
    parent, chopped, _ = columns
    screen = console()
    screen.print(rich_table(columns))
    added, place = chopped.loss - parent.loss, Path(escaped(str(workdir)))
    screen.print(
        f"\nChopping added {added:.3f} nats per token; healing took away "
        f"{gap_closed(columns):.0%} of it."
    )
    screen.print(f"Healed checkpoint: {place / 'healed'}", soft_wrap=True)
    screen.print(f"Report: {place / 'report.json'}, {place / 'healing.png'}", soft_wrap=True)
