"""`chopjax latency`: what a chop gains in time and memory, measured on this device."""

from __future__ import annotations

import argparse

from chopjax.commands.flags import add_weights, check_count

DEFAULT_LENGTH = 512


EXAMPLE = """\
chopjax latency PARENT --remove 25%,50% --plot latency
"""


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


def run(args: argparse.Namespace) -> int:

    import jax

    from chopjax.errors import UserError
    from chopjax.latency.measure import PHASES, measure
    from chopjax.latency.models import first_layers, open_models
    from chopjax.models.compute import Compute
    from chopjax.progress import progress, say
    from chopjax.report import latency as report
    from chopjax.report import plots
    from chopjax.terminal import print_json, show

    for flag in ("batch", "length", "rounds"):
        check_count(f"--{flag}", getattr(args, flag))
    plot = plots.check_plot(args.plot) if args.plot else None
    dtype = args.dtype
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    try:
        models = open_models(
            args.models, args.revision, dtype, args.random, args.remove, args.weights
        )
        models[report.BARE] = first_layers(*next(iter(models.values())), 0)
        longest = min(config.max_positions for _, config in models.values())
        length = args.length or min(DEFAULT_LENGTH, longest)
        if length > longest:
            raise UserError(f"--length {length}: the context length is {longest}")
        with progress("latency", args.rounds + 1, "rounds") as bar:
            timings = measure(
                models,
                args.batch,
                length,
                Compute(dtype=dtype),
                args.rounds,
                advance=bar.advance,
            )
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            "the device's memory does not hold the models side by side; measure fewer (--remove), "
            "or less of them (--batch, --length)"
        ) from None
    measured = [report.Measured(name, models[name][1], timings[name]) for name in timings]
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
    if plot is not None:
        for written in plots.save(report.figure(measured, setting), plot):
            say(f"wrote {written}")
    if args.json:
        print_json(report.as_json(measured, about))
        return 0
    show(report.table(measured), groups=(1, 1, 2, 2, 2, 1))
    print(f"\n{setting}; medians of {args.rounds} rounds in turns")
    for phase, meaning in PHASES.items():
        print(f"{phase} is {meaning}.")
    print("memory is the largest of the three: parameters, cache, activations.\n")
    print("\n".join(report.findings(measured)))
    return 0
