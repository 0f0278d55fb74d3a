"""`chopjax chop --repair`: its flags, and what is said of a repair. jax is imported to measure."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from chopjax.errors import UserError

if TYPE_CHECKING:
    from chopjax.checkpoint.source import Files
    from chopjax.chop.choice import Choice
    from chopjax.chop.folds import Folds

_DEFAULTS = {"ridge": 0.1, "sequences": 128, "sequence_length": 0}


def add_repair(parser: argparse.ArgumentParser) -> None:
    from chopjax.chop.fold_place import KINDS

    add = parser.add_argument_group(
        "repair", "Without training; reads and runs all layers of MODEL, those that go included."
    ).add_argument
    add(
        "--repair",
        metavar="KIND",
        help=f"{', '.join(KINDS)}: fold the map that stands in for the layers that go, by least "
        "squares on the text of --data, into the weights before each gap",
    )
    add(
        "--ridge",
        type=float,
        metavar="R",
        help="how strongly the map is drawn to leaving all as it is, in means of the Gram matrix's "
        "diagonal; 0 is allowed (default: 0.1)",
    )
    add("--sequences", type=int, metavar="N", help="documents to use (default: 128)")
    add(
        "--sequence-length",
        type=int,
        metavar="T",
        help="tokens of each at most (default: the context length, at most 2048)",
    )


def check_flags(args: argparse.Namespace) -> None:
    """Raises UserError for flags that do not go together, and fills in the defaults."""
    from chopjax.chop.repair_check import check_kind

    if args.repair is None:
        given = [name for name in _DEFAULTS if getattr(args, name) is not None]
        if given:
            raise UserError(f"--{given[0].replace('_', '-')} is for --repair")
        return
    for name, value in _DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    check_kind(args.repair, args.ridge)
    if not args.data:
        raise UserError(f"--repair {args.repair} looks at what layers do: give --data FILE")
    if args.text_only:
        raise UserError(
            f"--repair {args.repair} looks at what layers do: write the language model first "
            "(--text-only alone), then chop that"
        )


def folds_of(args: argparse.Namespace, checkpoint: Files, chosen: Choice) -> Folds | None:
    """What the repair found; None without one, and of a dry run, which only looks whether it could
    be done."""
    from chopjax.chop.repair_check import check_repair

    if args.repair is None:
        return None
    check_repair(checkpoint, chosen.keep, args.repair, args.ridge)
    if args.dry_run:
        return None

    from chopjax.chop.repair import RepairSettings, repair

    settings = RepairSettings(args.repair, args.ridge, args.sequences, args.sequence_length)
    return repair(
        args.model, args.revision, args.data, chosen.keep, chosen.recipe, settings, args.field
    )


def print_repair(folds: Folds) -> None:
    """What it cost and gained."""
    from rich.table import Table

    from chopjax.terminal import console, show

    about = folds.about
    screen = console(soft_wrap=True)
    screen.print(
        f"repaired ({about['kind']}, ridge {about['ridge']:g}) on {about['tokens']:,} tokens of "
        f"{about['sequences']} sequences in {about['seconds']:.1f} s"
    )
    table = Table("gap", "folded into", "error before", "after", "factor", box=None)
    for column in table.columns[2:]:
        column.justify = "right"
    for gap in about["gaps"]:
        into = "embeddings" if gap["folded_into"] is None else f"layer {gap['folded_into']}"
        if "factor" in gap and gap["folded_into"] is not None:
            into = f"embeddings to layer {gap['folded_into']}"
        factor = f"{gap['factor']:.4f}" if "factor" in gap else ""
        errors = (f"{gap[f'token_error_{when}']:.4f}" for when in ("before", "after"))
        table.add_row(f"layers {gap['layers']}", into, *errors, factor)
    show(table)
    screen.print("(error: of the stream behind the gap, |parent - chopped| / |parent|, mean)")
    loss = about["loss"]
    where = "other sequences of it" if about["loss_held_back"] else "the same text"
    screen.print(
        f"loss on {where}, {about['loss_tokens']:,} tokens: parent {loss['parent']:.4f}, chopped "
        f"{loss['chopped']:.4f}, repaired {loss['repaired']:.4f} nats"
    )
