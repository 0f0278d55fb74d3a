"""`chopjax compare`: results of several models side by side, with the significance."""

from __future__ import annotations

import argparse

EXAMPLE = """\
chopjax compare results/PARENT results/healed --plot comparison
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "results",
        nargs="+",
        metavar="RESULTS",
        help="results_DATE.json of `chopjax score` or of lm_eval, or a folder with them (the "
        "newest is taken); the first is what the others are compared with",
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
    from chopjax.report import plots
    from chopjax.report.results_file import read_results
    from chopjax.report.task_rendering import figure, groups, legend, markdown, rich_table
    from chopjax.report.task_table import as_json, compare
    from chopjax.terminal import print_json, show

    plot = plots.check_plot(args.plot) if args.plot else None
    files = [read_results(place) for place in args.results]
    if len({file.path.resolve() for file in files}) < len(files):
        raise UserError(f"the same results twice: {', '.join(str(file.path) for file in files)}")
    table = compare(files, args.metric)
    if plot is not None:
        for written in plots.save(figure(table), plot):
            say(f"wrote {written}")
    if args.json:
        print_json(as_json(table, files))
    elif args.markdown:
        print(markdown(table))
    else:
        show(rich_table(table), groups(table))
        for note in (legend(table), *table.notes):
            if note:
                print(note)
    return 0
