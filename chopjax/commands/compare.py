"""`chopjax compare`: results of several models side by side, with the significance and the cost."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from chopjax.disk.files import expanded

if TYPE_CHECKING:
    from chopjax.report.costs import Model
    from chopjax.report.task_table import Table

EXAMPLE = """\
chopjax compare results/PARENT results/healed --plot comparison
chopjax compare runs/sweep --markdown
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "results",
        nargs="+",
        metavar="RESULTS",
        help="results_DATE.json of `chopjax score` or of lm_eval, or a folder with them (the "
        "newest is taken); or the workdir of a `chopjax sweep`, for parent and points. The first "
        "model is what the others are compared with",
    )
    add(
        "--metric",
        metavar="NAME",
        help="show this metric (default: acc_norm where a task has it, else acc, else its first)",
    )
    add("--plot", metavar="PATH", help="draw it: PATH.png and PATH.svg")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    kind.add_argument("--json", action="store_true", help="print one JSON object instead")


def run(args: argparse.Namespace) -> int:

    from chopjax.errors import UserError
    from chopjax.progress import say
    from chopjax.report import costs, plots
    from chopjax.report.results_file import read_results
    from chopjax.report.task_rendering import figure, markdown, markdown_lines
    from chopjax.report.task_table import as_json, compare
    from chopjax.terminal import print_json

    plot = plots.check_plot(args.plot) if args.plot else None
    sweeps = [costs.of_workdir(expanded(place)) for place in args.results]
    places = zip(args.results, sweeps, strict=True)
    files = [read_results(place) for place, sweep in places if sweep is None]
    if len({file.path.resolve() for file in files}) < len(files):
        raise UserError(f"the same results twice: {', '.join(str(file.path) for file in files)}")
    table = compare(files, args.metric) if files else None
    scored = iter(costs.of_results(table, files) if table else ())
    models = [each for sweep in sweeps for each in sweep or [next(scored)]]
    if plot is not None:
        if table is None:
            raise UserError("--plot draws results; a sweep has its figures in its workdir")
        for written in plots.save(figure(table), plot):
            say(f"wrote {written}")
    if args.json:
        print_json((as_json(table, files) if table else {}) | {"costs": costs.as_json(models)})
    elif args.markdown:
        if table:
            print(markdown(table) + "\n")
        print("\n".join(markdown_lines(costs.cells(models), 1)))
    else:
        _print(table, models)
    return 0


def _print(table: Table | None, models: Sequence[Model]) -> None:
    from chopjax.report import costs
    from chopjax.report.task_rendering import groups, legend, rich_table
    from chopjax.terminal import show

    if table is not None:
        show(rich_table(table), groups(table))
        for note in filter(None, (legend(table), *table.notes)):
            print(note)
        print()
    show(costs.rich_table(models))
    print(costs.legend(models))
