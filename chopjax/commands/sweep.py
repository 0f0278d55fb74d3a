"""`chopjax sweep`: strategies times numbers of layers, scored unhealed and healed, drawn."""

from __future__ import annotations

import argparse

from chopjax.commands.flags import add_recipe
from chopjax.paths import expanded


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser, workdir="folder of the sweep; points that are done there are not done again")
    parser.add_argument(
        "--json", action="store_true", help="print report.json instead of the table"
    )


def run(args: argparse.Namespace) -> int:
    import os
    import shlex

    # The harness's bars would stand between ours. Read when tqdm is imported.
    os.environ.setdefault("TQDM_DISABLE", "1")

    from chopjax.errors import escaped
    from chopjax.report.sweep import rich_table
    from chopjax.report.terminal import console, print_json
    from chopjax.score.model import use_compilation_cache
    from chopjax.sweep import sweep
    from chopjax.train.config_file import load_config

    use_compilation_cache()
    workdir = expanded(args.workdir)
    parts = ["chopjax", "sweep", "--config", args.config, "--workdir", args.workdir]
    parts += [f"--config.{assignment}" for assignment in args.set]
    report = sweep(load_config(args.config, args.set), workdir, shlex.join(parts))
    if args.json:
        print_json(report)
        return 0
    screen = console(soft_wrap=True)
    screen.print(rich_table(report))
    screen.print(f"{escaped(str(workdir / 'report.html'))}: figures, tables, settings")
    return 0
