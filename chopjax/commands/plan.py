"""`chopjax plan`: a training run on a TPU pod or on GPUs that are not there."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from chopjax.commands.flags import add_recipe
from chopjax.errors import UserError

if TYPE_CHECKING:
    from chopjax.plan.topology import AnyTopology
    from chopjax.train.origin import Origin
    from chopjax.train.settings import Settings
    from chopjax.train.teacher import Teacher

EXAMPLE = """\
chopjax plan --config configs/just_chop_llama2_7b.py --topology v5p:4x4x4
chopjax plan --config configs/just_chop_llama2_7b.py --topology h100:8
chopjax plan --config configs/just_chop_1b.py --topology v5p:2x2x2 --search
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)
    add = parser.add_argument
    add(
        "--topology",
        required=True,
        metavar="SLICE",
        help="the TPU slice, by its shape (v5p:4x4x4, v5e:16x16) or Cloud's accelerator type "
        "(v5p-128, v5litepod-256), or GPUs (h100:8, h200:16); mesh.slices of the config says how "
        "many of them",
    )
    add("--tokens", type=float, metavar="N", help="token budget (default: the config's steps)")
    add(
        "--machine-code",
        action="store_true",
        help="let the compiler go on to the end (minutes): shows that all of it compiles, and how "
        "large the program is",
    )
    add(
        "--search",
        action="store_true",
        help="try remat, microbatches and loss chunk in each phase, in minutes, and print the "
        "fastest that fit, as flags",
    )
    add("--json", action="store_true", help="print one JSON object instead of tables")


def run(args: argparse.Namespace) -> int:
    """Exit code 1 for what does not fit."""
    from chopjax.plan.topology import parse, prepare_environment

    parse(args.topology)
    prepare_environment()

    from chopjax.plan.plan import make_plan, settings_of
    from chopjax.plan.tables import show
    from chopjax.terminal import print_json
    from chopjax.train.config_file import load_config

    if args.search and (args.machine_code or args.tokens is not None):
        raise UserError("--search: not with --machine-code or --tokens")
    if args.tokens is not None and args.tokens <= 0:
        raise UserError(f"--tokens {args.tokens:g}: a positive number is needed")
    settings, origin, teacher = settings_of(load_config(args.config, args.set))
    topology = parse(args.topology, settings.mesh.slices)
    if args.search:
        return _search(settings, origin, topology, teacher, args.json)
    plan = make_plan(settings, origin, topology, args.tokens, args.machine_code, teacher)
    if args.json:
        print_json(plan)
    else:
        show(plan)
    return 0 if plan["fits"] else 1


def _search(
    settings: Settings,
    origin: Origin,
    topology: AnyTopology,
    teacher: Teacher | None,
    as_json: bool,
) -> int:
    from chopjax.plan.search import Found, as_record, search
    from chopjax.plan.search_table import show_search
    from chopjax.terminal import print_json

    found: list[Found] = []
    try:
        search(settings, origin, topology, teacher, found)
    finally:  # also what is known when somebody has had enough
        if found and as_json:
            print_json(as_record(found, settings))
        elif found:
            show_search(found, settings, topology.chip.usable_hbm)
        sys.stdout.flush()
    return 0 if all(each.best is not None for each in found) else 1
