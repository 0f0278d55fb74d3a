"""`chopjax chop`: remove layers from a Hugging Face checkpoint without reading them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chopjax.commands.chop_repair import add_repair, check_flags, folds_of, print_repair
from chopjax.commands.flags import add_max_shard_size, parse_bytes
from chopjax.disk.files import expanded
from chopjax.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from chopjax.checkpoint.source import Files
    from chopjax.chop.choice import Choice
    from chopjax.chop.stream import ChopPlan


EXAMPLE = """\
chopjax chop HuggingFaceTB/SmolLM-135M halved --strategy input --remove 0.5
chopjax chop PARENT chosen --strategy sleb --remove 8 --analysis analysis
chopjax chop PARENT mended --strategy input --remove 8 --repair linear \\
    --data text.jsonl
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from chopjax.chop.configurations import STRATEGIES
    from chopjax.chop.importance import MEASURED
    from chopjax.chop.merge import MERGES
    from chopjax.chop.period import ANY, CHOICES

    add = parser.add_argument
    add("model", metavar="MODEL", help="folder of a Hugging Face checkpoint, or hub id owner/name")
    add("out", metavar="OUT", help="folder to write; it appears when it is complete")
    add = parser.add_argument_group("which layers").add_argument
    add(
        "--strategy",
        metavar="NAME",
        help=f"which layers go: {', '.join(STRATEGIES)}; or by measurement, with --analysis or "
        f"--data: {', '.join(MEASURED)}; or merged, likewise: {', '.join(MERGES)}",
    )
    add(
        "--remove",
        metavar="N",
        help="how many layers go: a count (12), a fraction (0.5) or a percentage (50%%)",
    )
    add(
        "--keep",
        metavar="LIST",
        help="instead of a strategy: the layers that stay, from 0, ends inclusive (0,13-23)",
    )
    add("--analysis", metavar="DIR", help="what `chopjax analyze` wrote about MODEL")
    add(
        "--data",
        action="append",
        metavar="FILE",
        help="text: without --analysis to measure the layers on now, as `chopjax analyze` does; "
        "and what --repair looks at",
    )
    add(
        "--field",
        default="text",
        help="with --data: of a JSON line, the field with the text (default: text)",
    )
    add(
        "--protect",
        metavar="F,L",
        help="the first F and the last L layers are never chosen by a measure (default: 1,1)",
    )
    add(
        "--period",
        choices=CHOICES,
        default=ANY,
        help="of a model with local and global layers: remove any layers, with their kinds spelled "
        "out in config.json (any, the default), or whole periods alone, which also readers that go "
        "by a layer's index understand, llama.cpp among them (whole)",
    )
    add(
        "--text-only",
        action="store_true",
        help="of a model with a vision tower: write its language model alone, as the text model "
        "that chopjax trains and scores; with all its layers where nothing says which go",
    )
    add_repair(parser)
    add = parser.add_argument_group("input and output").add_argument
    add("--revision", metavar="REV", help="branch, tag or commit of a hub id (default: main)")
    add("--overwrite", action="store_true", help="replace OUT if `chopjax chop` wrote it")
    add_max_shard_size(add)
    add("--dry-run", action="store_true", help="print what would stay and go, and write nothing")
    add("--json", action="store_true", help="print one JSON object instead of the table")


def run(args: argparse.Namespace) -> int:
    from chopjax.chop.stream import chop_checkpoint, plan_chop
    from chopjax.disk.atomic import check_free
    from chopjax.progress import say
    from chopjax.terminal import print_json

    _check_flags(args)
    if not args.dry_run:
        check_free(Path(args.out), "chop", args.overwrite)  # before measuring, which takes its time
    max_shard_bytes = parse_bytes(args.max_shard_size, "--max-shard-size")
    checkpoint, looked_at = _opened(args)
    chosen = _choice(args, looked_at)
    notes = _notes(checkpoint, chosen)
    folds = folds_of(args, checkpoint, chosen)
    if args.dry_run:
        done = plan_chop(checkpoint, chosen.keep)
    else:
        done = chop_checkpoint(
            checkpoint, chosen.keep, Path(args.out), chosen.strategy, chosen.settings,
            args.overwrite, max_shard_bytes, chosen.recipe, folds,
        )  # fmt: skip
    if args.json:
        result = _result(args, checkpoint, chosen, done) | {"notes": notes}
        if folds is not None:
            result["repair"] = folds.record(done.tensors, checkpoint, done.kept_layers)
        print_json(result)
    else:
        _print(args, done)
        if folds is not None:
            print_repair(folds)
        for note in notes:
            say(f"note: {note}")
    return 0


def _opened(args: argparse.Namespace) -> tuple[Files, Files]:
    """What is chopped, and what is looked at. Of what `chopjax quantize` wrote the codes move, and
    the numbers that they stand for are looked at, and written where weights are computed."""
    from chopjax.checkpoint.compressed_tensors import held_as
    from chopjax.checkpoint.open import open_checkpoint, open_to_chop
    from chopjax.checkpoint.packed import say_decoded
    from chopjax.chop.choice import LOOKS
    from chopjax.chop.merge import MERGES

    moved = open_to_chop(args.model, args.revision, args.text_only)
    computes = args.strategy in MERGES or args.repair is not None
    if held_as(moved.raw_config) is None or not (computes or args.strategy in LOOKS):
        return moved, moved
    numbers = open_checkpoint(args.model, args.revision)
    if computes:
        say_decoded(numbers)
    return numbers if computes else moved, numbers


def _notes(checkpoint: Files, chosen: Choice) -> list[str]:
    """What else there is to know. Raises UserError where config.json cannot say what is kept."""
    from chopjax.chop.period import rhythm_notes
    from chopjax.chop.stream import chopped_config

    chopped = chopped_config(checkpoint, chosen.keep)
    return [*checkpoint.notes, *rhythm_notes(checkpoint, chosen.keep, chopped)]


def _check_flags(args: argparse.Namespace) -> None:
    from chopjax.chop.choice import KNOWN, LOOKS

    if args.strategy not in (None, *KNOWN):
        raise UserError(
            f"--strategy: {args.strategy!r} is not one of {', '.join(KNOWN)}"
            + did_you_mean(args.strategy, KNOWN)
        )
    check_flags(args)
    if _takes_all(args):
        return
    if args.keep is None:
        if args.strategy is None or args.remove is None:
            raise UserError("give --strategy NAME and --remove N, or --keep LIST")
    elif args.strategy is not None or args.remove is not None:
        raise UserError("--keep names the layers itself; leave --strategy and --remove out")
    if args.text_only and args.strategy in LOOKS:
        raise UserError(
            f"--strategy {args.strategy} looks at what layers do: write the language model first "
            "(--text-only alone), then chop that"
        )


def _takes_all(args: argparse.Namespace) -> bool:
    """Whether a language model is written alone, with all of its layers."""
    said = (args.keep, args.strategy, args.remove)
    return args.text_only and all(each is None for each in said)


def _choice(args: argparse.Namespace, checkpoint: Files) -> Choice:
    from chopjax.checkpoint.source import Checkpoint
    from chopjax.chop import choice
    from chopjax.chop.configurations import STRATEGIES, resolve_remove
    from chopjax.chop.importance import MEASURED, check_count, parse_protect
    from chopjax.chop.merge import check_average
    from chopjax.chop.period import ANY, WHOLE, check_whole

    if args.strategy not in choice.LOOKS:
        if _takes_all(args):
            return choice.all_layers(checkpoint.num_layers)
        if args.analysis or (args.data and not args.repair) or args.protect:
            raise UserError(
                "--analysis, --data and --protect are for strategies that measure: "
                f"{', '.join(choice.LOOKS)}"
            )
        if args.keep is not None:
            chosen = choice.by_list(args.keep, checkpoint.num_layers)
            if args.period == WHOLE:
                check_whole(checkpoint, chosen.keep)
            return chosen
        if args.period == WHOLE:
            return choice.by_periods(checkpoint, args.strategy, args.remove)
        return choice.by_name(args.strategy, args.remove, checkpoint.num_layers)
    if args.period != ANY:
        raise UserError(
            f"--period {args.period} is for strategies by name ({', '.join(STRATEGIES)}) and for "
            f"--keep; --strategy {args.strategy} looks at single layers"
        )
    if not isinstance(checkpoint, Checkpoint):
        raise UserError(
            f"--strategy {args.strategy} looks at what layers do, and chopjax does not compute "
            f"with {args.model}: {checkpoint.why}.\n"
            f"Strategies by name do without: {', '.join(STRATEGIES)}; or --keep LIST"
        )
    if not (args.analysis or args.data) or (args.analysis and args.data and not args.repair):
        raise UserError(
            f"--strategy {args.strategy} looks at what layers do: give --analysis DIR, from "
            "`chopjax analyze`, or --data FILE to measure now"
        )
    if args.strategy == "laco" and args.analysis:  # with --repair, --data may be given, too
        raise UserError("--strategy laco tries merges on text: give --data FILE, not --analysis")
    protect = parse_protect(args.protect or "1,1")
    remove = resolve_remove(args.remove, checkpoint.num_layers)
    if args.strategy == "average":  # before measuring
        check_average(checkpoint.num_layers, remove, protect)
    elif args.strategy in MEASURED:
        check_count(args.strategy, checkpoint.num_layers, remove, protect)
    if args.analysis:
        folder = expanded(args.analysis)
        return choice.by_analysis_in(folder, checkpoint, args.strategy, remove, protect)

    from chopjax.chop.analysis import AnalysisSettings, analyze

    if args.strategy == "laco":
        # The paper looks at five sentences; a few more cost little.
        settings = AnalysisSettings(sequences=16, measures=(), protect=protect)
        return choice.by_laco(args.model, args.revision, args.data, remove, settings, args.field)
    measures = (choice.measure_of(args.strategy),)
    rounds = choice.sleb_rounds(args.strategy, remove)
    settings = AnalysisSettings(measures=measures, rounds=rounds, protect=protect)
    analysis = analyze(args.model, args.data, settings, args.revision, args.field)
    return choice.by_analysis(args.strategy, remove, analysis, protect)


def _result(
    args: argparse.Namespace, checkpoint: Files, chosen: Choice, done: ChopPlan
) -> dict[str, Any]:
    import dataclasses

    return {
        "model": args.model,
        "revision": checkpoint.revision,
        "out": None if args.dry_run else args.out,
        "strategy": chosen.strategy,
        "settings": chosen.settings,
        "kept_layers": list(done.kept_layers),
        "removed_layers": list(done.removed_layers),
        "before": dataclasses.asdict(done.before),
        "after": dataclasses.asdict(done.after),
    }


def _print(args: argparse.Namespace, done: ChopPlan) -> None:
    from rich.table import Table

    from chopjax.errors import escaped
    from chopjax.keep import ranges
    from chopjax.terminal import console

    title = "would be written" if args.dry_run else "written"
    table = Table(
        "", "before", "after", "ratio", title=f"{escaped(args.out)} ({title})", title_justify="left"
    )
    for column in table.columns[1:]:
        column.justify = "right"
    # Of a model that chopjax does not compute with, what its files hold is all that is known.
    counted = "elements" if done.before.parameters is None else "parameters"
    for name in ("layers", counted, "tensors", "bytes"):
        before, after = getattr(done.before, name), getattr(done.after, name)
        table.add_row(name, f"{before:,}", f"{after:,}", f"{after / before:.3f}")
    screen = console(soft_wrap=True)
    screen.print(f"kept layers     {ranges(done.kept_layers)}")
    screen.print(f"removed layers  {ranges(done.removed_layers) or 'none'}")
    screen.print("(numbered from 0 as in MODEL, both ends of a range inclusive)")
    screen.print(table)
