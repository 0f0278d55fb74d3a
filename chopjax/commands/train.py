"""`chopjax train`: continue pretraining, resumable."""

from __future__ import annotations

import argparse
from typing import Any

from chopjax import interrupts
from chopjax.commands.flags import add_processes, add_recipe

# Fields of a config that may differ from host to host: the same file system elsewhere.
PLACES = ("model", "data.train", "data.evaluation")
EXAMPLE = """\
chopjax train --config configs/heal.py --workdir runs/heal \\
    --config.model=halved --config.data.train=tokens
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(
        parser, workdir="where checkpoints and metrics go; a run that is there already is resumed"
    )
    add = parser.add_argument
    add(
        "--force",
        action="store_true",
        help="resume although settings changed that change what the run means",
    )
    add(
        "--check",
        nargs="?",
        const="here",
        choices=("here", "elsewhere"),
        help="look at recipe, model and token stores, say what is wrong or missing, and end; "
        "`elsewhere`: the run is for other machines, and stores may lie there alone",
    )
    add("--json", action="store_true", help="print one JSON object instead of the table")
    add_processes(parser)


def run(args: argparse.Namespace) -> int:
    from chopjax.launch.distributed import EXIT_PREEMPTED

    # A run that has not begun is to be started again, too.
    with interrupts.watching(EXIT_PREEMPTED):
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    from chopjax.launch.distributed import joined
    from chopjax.launch.processes import launch_of
    from chopjax.train.config_file import fields, load_config
    from chopjax.train.loop import newest, train

    interrupts.advise(lambda: f"the same command goes on. {newest(args.workdir)}")
    config = load_config(args.config, args.set)  # a typo is found before the others are waited for
    if args.check:
        from chopjax.train.check import check

        check(config, args.workdir, args.check)
        return 0
    launch = launch_of(args)
    values = {name: value for name, value in fields(config).items() if name not in PLACES}
    with joined(launch, values, lambda: newest(args.workdir)) as processes:
        summary = train(config, args.workdir, args.force)
    if processes is not None and processes.index != 0:
        return 0  # the first process speaks for all
    if args.json:
        from chopjax.terminal import print_json

        print_json(summary)
    else:
        _print(summary)
    return 0


def _print(summary: dict[str, Any]) -> None:
    from rich.table import Table

    from chopjax.errors import escaped
    from chopjax.terminal import console

    table = Table(title="Training", show_header=False)
    for name, value in summary.items():
        if value is not None:
            table.add_row(name.replace("_", " "), escaped(_text(name, value)))
    console().print(table)


def _text(name: str, value: object) -> str:
    if name in ("mfu", "goodput"):
        return f"{100 * value:.1f} %"  # type: ignore[operator]
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
