"""`chopjax sweep`: strategies times numbers of layers, scored unhealed and healed, drawn."""

from __future__ import annotations

import argparse

from chopjax import interrupts
from chopjax.commands.flags import add_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser, workdir="folder of the sweep; points that are done there are not done again")
    parser.add_argument(
        "--json", action="store_true", help="print report.json instead of the table"
    )


def run(args: argparse.Namespace) -> int:
    import json
    import os
    import shlex
    from pathlib import Path

    # The harness's bars would stand between ours. Read when tqdm is imported.
    os.environ.setdefault("TQDM_DISABLE", "1")

    from rich.console import Console

    from chopjax.report.sweep import rich_table
    from chopjax.score.model import use_compilation_cache
    from chopjax.sweep import sweep
    from chopjax.train.config_file import load_config

    interrupts.advise("the points so far are kept, and the same command goes on from there")
    use_compilation_cache()
    workdir = Path(args.workdir).expanduser()
    parts = ["chopjax", "sweep", "--config", args.config, "--workdir", args.workdir]
    parts += [f"--config.{assignment}" for assignment in args.set]
    report = sweep(load_config(args.config, args.set), workdir, shlex.join(parts))
    if args.json:
        print(json.dumps(report))
        return 0
    console = Console(soft_wrap=True, highlight=False)
    console.print(rich_table(report))
    console.print(f"{workdir / 'report.html'}: figures, tables, settings")
    return 0
