"""`chopjax sweep`: strategies times numbers of layers, scored unhealed and healed, drawn."""

from __future__ import annotations

import argparse

from chopjax import interrupts
from chopjax.commands.flags import add_budget, add_recipe, again
from chopjax.disk.files import expanded

EXAMPLE = """\
chopjax sweep --config configs/sweep.py --workdir runs/sweep \\
    --config.model=PARENT --config.text.train=corpus.jsonl \\
    --config.text.held_out=held_out.jsonl
chopjax sweep --config configs/sweep.py --workdir runs/rivals \\
    --config.model=PARENT --config.text.train=corpus.jsonl \\
    --config.text.held_out=held_out.jsonl \\
    --config.strategies=input,sparsegpt:2:4,narrow:mlp=0.5,input:0.25+int4
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser, workdir="folder of the sweep; points that are done there are not done again")
    add_budget(parser, "what each method of healing may cost")
    parser.add_argument(
        "--json", action="store_true", help="print report.json instead of the table"
    )


def run(args: argparse.Namespace) -> int:
    import os

    # The harness's bars would stand between ours. Read when tqdm is imported.
    os.environ.setdefault("TQDM_DISABLE", "1")

    from chopjax.errors import escaped
    from chopjax.report.sweep import rich_table
    from chopjax.runs.sweep import sweep
    from chopjax.score.model import use_compilation_cache
    from chopjax.terminal import console, print_json, show
    from chopjax.train.config_file import load_config

    interrupts.advise("the points so far are kept, and the same command goes on from there")
    use_compilation_cache()
    workdir = expanded(args.workdir)
    report = sweep(load_config(args.config, args.set), workdir, again("sweep", args))
    if args.json:
        print_json(report)
        return 0
    show(rich_table(report))
    screen = console(soft_wrap=True)
    screen.print(f"{escaped(str(workdir / 'report.html'))}: figures, tables, settings")
    return 0
