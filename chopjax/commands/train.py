"""`chopjax train`: continue pretraining, resumable."""

from __future__ import annotations

import argparse
import json

from chopjax import interrupts
from chopjax.commands.flags import add_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from chopjax.train import distributed

    add_recipe(
        parser, workdir="where checkpoints and metrics go; a run that is there already is resumed"
    )
    add = parser.add_argument
    add(
        "--force",
        action="store_true",
        help="resume although settings changed that change what the run means",
    )
    add("--json", action="store_true", help="print one JSON object instead of the table")
    distributed.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from chopjax.train.peers import EXIT_PREEMPTED

    # A run that has not begun is to be started again, too.
    with interrupts.watching(EXIT_PREEMPTED):
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    from chopjax.train import distributed
    from chopjax.train.config_file import load_config
    from chopjax.train.loop import last_words, train

    interrupts.advise(lambda: f"the same command goes on. {last_words(args.workdir)}")
    config = load_config(args.config, args.set)  # a typo is found before the others are waited for
    launch = distributed.launch_of(args)
    with distributed.joined(launch, lambda: last_words(args.workdir)) as processes:
        summary = train(config, args.workdir, args.force)
    if processes is not None and processes.index != 0:
        return 0  # the first process speaks for all
    if args.json:
        print(json.dumps(summary))
    else:
        _print(summary)
    return 0


def _print(summary: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Training", show_header=False)
    for name, value in summary.items():
        if value is not None:
            table.add_row(name.replace("_", " "), _text(name, value))
    Console().print(table)


def _text(name: str, value: object) -> str:
    if name in ("mfu", "goodput"):
        return f"{100 * value:.1f} %"  # type: ignore[operator]
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
