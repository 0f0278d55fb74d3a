"""`chopjax latency`: what a chop gains in time and memory, measured on this device."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, NamedTuple

from chopjax.commands.flags import add_weights, check_count

if TYPE_CHECKING:
    import numpy as np

    from chopjax.generate.draft import FoundDraft
    from chopjax.latency.drafts import Drafted
    from chopjax.latency.models import Model
    from chopjax.report.latency import Measured

DEFAULT_LENGTH = 512


EXAMPLE = """\
chopjax latency PARENT --remove 25%,50% --plot latency
chopjax latency PARENT --draft healed --data held_out.jsonl
"""


class Drafts(NamedTuple):
    """What is to be drafted: new tokens behind each prompt."""

    found: list[FoundDraft]
    length: int | None
    prompts: list[np.ndarray]
    new: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "models",
        nargs="+",
        metavar="MODEL",
        help="folder of a checkpoint, hub id, import or training run; several are measured side by "
        "side, one alone beside chops of itself",
    )
    add(
        "--remove",
        metavar="LIST",
        help="of one model, chops to measure: layers, fractions or percentages, separated by "
        "commas; which layers go makes no difference to time (default: 25%%,50%%,75%%; 0: none)",
    )
    add(
        "--random",
        action="store_true",
        help="random weights of the model's shapes: its config.json is all that is needed",
    )
    add("--revision", metavar="REV", help="branch, tag or commit of a hub id (default: main)")
    add("--plot", metavar="PATH", help="draw latency against layers: PATH.png and PATH.svg")
    add("--json", action="store_true", help="print one JSON object instead of a table")
    add = parser.add_argument_group("measurement").add_argument
    add("--batch", type=int, default=1, metavar="B", help="sequences (default: 1)")
    add(
        "--length",
        type=int,
        metavar="T",
        help=f"tokens of each, also in the cache before decoding (default: {DEFAULT_LENGTH}, or "
        "the context length)",
    )
    add("--rounds", type=int, default=11, metavar="N", help="times each is measured (default: 11)")
    add(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of parameters and activations (default: auto, float32 on CPU and bfloat16 elsewhere)",
    )
    add_weights(add)
    add = parser.add_argument_group(
        "speculative decoding",
        "Also time text that a draft writes ahead, beside the same text without one. Each flag but "
        "the last may be given several times.",
    ).add_argument
    many: Any = {"action": "append", "default": []}
    add("--draft", metavar="CHOP", help="a checkpoint with the same tokenizer", **many)
    add("--draft-keep", metavar="LIST", help='layers of the model, such as "0,13-23"', **many)
    add(
        "--data",
        metavar="FILE",
        help="text whose beginnings are the prompts, B for each round: .jsonl, .txt, a folder or "
        "hf:NAME",
        **many,
    )
    add(
        "--draft-length",
        default="auto",
        metavar="K",
        help="tokens of a draft (default: auto, what is fastest by what the first round measures)",
    )


def run(args: argparse.Namespace) -> int:
    import jax

    from chopjax.errors import UserError
    from chopjax.progress import say
    from chopjax.report import drafts as drafts_report
    from chopjax.report import latency as report
    from chopjax.report import plots
    from chopjax.terminal import print_json

    for flag in ("batch", "length", "rounds"):
        check_count(f"--{flag}", getattr(args, flag))
    plot = plots.check_plot(args.plot) if args.plot else None
    drafts = _find_drafts(args)
    drafts_plot = plots.check_plot(f"{plot}-drafts") if plot and drafts else None
    dtype = args.dtype
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    try:
        measured, length, drafted = _measure(args, dtype, drafts)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            "the device's memory does not hold the models side by side; measure fewer (--remove), "
            "or less of them (--batch, --length)"
        ) from None
    about = {
        "batch": args.batch,
        "length": length,
        "dtype": dtype,
        "weights": args.weights,
        "device": jax.devices()[0].device_kind,
        "rounds": args.rounds,
    }
    held = f"{dtype}, weights in {args.weights}" if args.weights else dtype
    setting = f"batch {args.batch}, {length} tokens, {held}, {about['device']}"
    figures = {plot: report.figure(measured, setting)} if plot else {}
    if drafts_plot:
        figures[drafts_plot] = drafts_report.figure(drafted, measured[0].layers, setting)
    for place, figure in figures.items():
        for written in plots.save(figure, place):
            say(f"wrote {written}")
    if args.json:
        if drafts:
            about |= {"prompts": len(drafts.prompts), "new_tokens": drafts.new}
            about["drafts"] = drafts_report.as_json(drafted)
        print_json(report.as_json(measured, about))
        return 0
    _show(measured, f"{setting}; medians of {args.rounds} rounds in turns")
    if drafts:
        _show_drafts(drafts, drafted, measured[0].layers)
    return 0


def _measure(
    args: argparse.Namespace, dtype: str, drafts: Drafts | None
) -> tuple[list[Measured], int, dict[str, Drafted]]:
    """The models, the parent first; tokens of a sequence; the drafts by name."""
    from chopjax.errors import UserError
    from chopjax.latency.measure import measure
    from chopjax.latency.models import first_layers, open_models
    from chopjax.models.compute import Compute
    from chopjax.progress import progress
    from chopjax.report.latency import BARE, Measured

    models = open_models(args.models, args.revision, dtype, args.random, args.remove, args.weights)
    models[BARE] = first_layers(*next(iter(models.values())), 0)
    longest = min(config.max_positions for _, config in models.values())
    length = args.length or min(DEFAULT_LENGTH, longest)
    if length > longest:
        raise UserError(f"--length {length}: the context length is {longest}")
    with progress("latency", args.rounds + 1, "rounds") as bar:
        compute = Compute(dtype=dtype)
        timings = measure(models, args.batch, length, compute, args.rounds, advance=bar.advance)
    drafted = _measure_drafts(args, drafts, next(iter(models.values())), dtype) if drafts else {}
    return [Measured(name, models[name][1], timings[name]) for name in timings], length, drafted


def _show(measured: list[Measured], setting: str) -> None:
    from chopjax.latency.measure import PHASES
    from chopjax.report import latency as report
    from chopjax.terminal import show

    show(report.table(measured), groups=(1, 1, 2, 2, 2, 1))
    print(f"\n{setting}")
    for phase, meaning in PHASES.items():
        print(f"{phase} is {meaning}.")
    print("memory is the largest of the three: parameters, cache, activations.\n")
    print("\n".join(report.findings(measured)))


def _show_drafts(drafts: Drafts, drafted: dict[str, Drafted], layers: int) -> None:
    from chopjax.report.drafts import table
    from chopjax.terminal import show

    print()
    show(table(drafted, layers))
    print(f"\n{drafts.new} tokens behind each of {len(drafts.prompts)} prompts, in turns")


def _find_drafts(args: argparse.Namespace) -> Drafts | None:
    """None where no draft is asked for. No weight is read. Raises UserError for flags that do not
    go together, for drafts that are none of this model, and for files without text."""
    from chopjax.checkpoint.describe import describe
    from chopjax.data.tokenizer import load_tokenizer
    from chopjax.errors import UserError
    from chopjax.generate.draft import DraftChoice, find_draft, parse_length
    from chopjax.latency.drafts import beginnings, room
    from chopjax.score.perplexity import read_texts

    choices = [DraftChoice(model=name) for name in args.draft]
    choices += [DraftChoice(keep=keep) for keep in args.draft_keep]
    length = parse_length(args.draft_length)
    if not choices:
        if args.data or length:
            raise UserError(
                "--data and --draft-length are for a draft; give --draft or --draft-keep, too"
            )
        return None
    if len(args.models) > 1:
        raise UserError("--draft and --draft-keep are for one MODEL, whose text they write ahead")
    if args.random:
        raise UserError("--random: a draft foretells nothing of random weights; leave one out")
    if not args.data:
        raise UserError("--draft and --draft-keep need --data, text for the model to go on with")
    texts = read_texts(args.data, "text")
    model = describe(args.models[0], args.revision, quantized=True)
    tokenizer = load_tokenizer(model.folder)
    found = [find_draft(choice, model, tokenizer.fingerprint) for choice in choices]
    if len({each.name for each in found}) < len(found):
        raise UserError(f"the same draft twice: {', '.join(each.name for each in found)}")
    longest, new = room(model.config.max_positions, args.length or DEFAULT_LENGTH)
    prompts = beginnings(tokenizer, texts, args.batch * args.rounds, longest)
    if not prompts:
        raise UserError(f"{', '.join(args.data)}: no text in it")
    return Drafts(found, length, prompts, new)


def _measure_drafts(
    args: argparse.Namespace, drafts: Drafts, model: Model, dtype: str
) -> dict[str, Drafted]:
    """Name → figures."""
    from chopjax.latency.drafts import measure_drafts
    from chopjax.latency.models import open_draft
    from chopjax.models.compute import Compute
    from chopjax.progress import progress
    from chopjax.score.engine import Engine
    from chopjax.score.layout import Budget

    params, config = model
    # A batch is one, however long: slots and rows are rounded up to powers of two.
    budget = Budget(tokens=4 * args.batch * config.max_positions)
    engine = Engine(config, params, Compute(dtype=dtype), budget=budget)
    opened = [open_draft(found, engine, dtype, args.weights) for found in drafts.found]
    turns = 1 + -(-len(drafts.prompts) // args.batch)
    with progress("drafts", turns, "rounds") as bar:
        measured = measure_drafts(
            engine, opened, drafts.prompts, drafts.new, args.batch, drafts.length, bar.advance
        )
    return {found.name: one for found, one in zip(drafts.found, measured, strict=True)}
