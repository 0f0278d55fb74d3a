"""Flags that several verbs share."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Callable
from typing import Any

from chopjax.errors import UserError

MOST_THINGS = 2**31 - 1  # documents, sequences, devices
WEIGHTS = ("int8", "int4", "nf4", "fp8")  # FORMATS of chopjax/models/formats.py
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def add_max_shard_size(add: Callable[..., object]) -> None:
    """add: a parser's or a group's add_argument."""
    add(
        "--max-shard-size",
        metavar="SIZE",
        default="5GB",
        help="tensor bytes in one file at most, such as 500MB or 2GiB (default: 5GB)",
    )


def add_scoring_model(parser: argparse.ArgumentParser, needed: bool = True) -> None:
    """MODEL and how to run it, of the verbs that score. needed: whether argparse asks for MODEL."""
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        nargs=None if needed else "?",
        help="folder of a checkpoint, hub id owner/name, folder of `chopjax import`, or workdir of "
        "a training run",
    )
    add("--revision", metavar="REV", help="branch, tag or commit of a hub id (default: main)")
    add = parser.add_argument_group("computation").add_argument
    add(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of parameters and activations; log-probabilities are float32 always (default: auto, "
        "float32 on CPU and bfloat16 elsewhere, which moves a request's log-likelihood by some "
        "hundredths of a nat)",
    )
    add(
        "--batch-size",
        type=_batch_size,
        metavar="B",
        help="sequences of full length that a forward pass may hold; no result depends on it "
        "(default: fitted to the device)",
    )
    add_weights(add)
    add_mesh(add)


def add_weights(add: Callable[..., object]) -> None:
    """add: a parser's or a group's add_argument."""
    add(
        "--weights",
        choices=WEIGHTS,
        help="quantize the blocks' matrices while they are read: int8 and fp8 with a scale a row, "
        "int4 and nf4 with one for so many inputs (default: as --dtype says)",
    )


def _batch_size(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"a number or auto is needed, not {text!r}")
    return int(text)


def add_mesh(add: Callable[..., object]) -> None:
    """add: a parser's or a group's add_argument."""
    add(
        "--fsdp",
        type=int,
        default=1,
        metavar="N",
        help="devices that share the parameters (default: 1)",
    )
    add(
        "--tensor",
        type=int,
        default=1,
        metavar="N",
        help="devices that share each layer's work (default: 1)",
    )


def check_scoring_model(args: argparse.Namespace) -> None:
    """Raises UserError for flags of add_scoring_model that make no sense."""
    for flag in ("batch_size", "fsdp", "tensor"):
        check_count(f"--{flag.replace('_', '-')}", getattr(args, flag))


def check_count(flag: str, value: int | None) -> None:
    """Raises UserError for what is no number of things; None is no value given."""
    if value is not None and value < 1:
        raise UserError(f"{flag} {value}: at least 1 is needed")
    if value is not None and value > MOST_THINGS:
        raise UserError(f"{flag} {value}: at most {MOST_THINGS:,}")


def add_recipe(parser: argparse.ArgumentParser, workdir: str = "") -> None:
    """--config, --workdir and what changes or shows single fields. workdir: the help for the
    second, which the verb does not have where this is empty."""
    add = parser.add_argument_group("recipe").add_argument
    add("--config", required=True, metavar="FILE", help="the recipe, a Python file of configs/")
    if workdir:
        add("--workdir", required=True, metavar="DIR", help=workdir)
    add(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="set a field of the config; --config.FIELD=VALUE says the same",
    )
    add(
        "--print-config",
        action=_PrintConfig,
        help="print all settings as they would be, with what they mean, and do nothing else",
    )


class _PrintConfig(argparse.Action):
    """With it, only the recipe must be given."""

    def __init__(self, option_strings: list[str], dest: str, help: str):
        super().__init__(option_strings, dest, nargs=0, default=False, help=help)

    def __call__(self, parser: Any, namespace: Any, *rest: Any) -> None:
        setattr(namespace, self.dest, True)
        for action in parser._actions:
            action.required = action.dest == "config"


def print_config(args: argparse.Namespace) -> int:
    """What --print-config does, with --json as one object."""
    import json

    from chopjax.runs.settings_reference import as_recipe
    from chopjax.train.config_file import load_config

    config = load_config(args.config, args.set)
    print(json.dumps(config.to_dict()) if args.json else as_recipe(config))
    return 0


def again(verb: str, args: argparse.Namespace) -> str:
    """The command that does the same, for a shell, a flag a line."""
    flags = [["--config", args.config], ["--workdir", args.workdir]]
    flags += [[f"--config.{assignment}"] for assignment in args.set]
    return " \\\n    ".join([f"chopjax {verb}", *map(shlex.join, flags)])


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Which process of several this is; read by chopjax/launch/distributed.py."""
    group = parser.add_argument_group(
        "processes", "Found by themselves on TPU pods and under SLURM; one process needs none."
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    group.add_argument("--num-processes", type=int, metavar="N", help="number of processes")
    group.add_argument("--process-id", type=int, metavar="I", help="which of them this is, from 0")
    group.add_argument(
        "--start-timeout",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="how long to wait until every process has started (default: %(default).0f)",
    )


def parse_bytes(text: str, flag: str) -> int:
    """ "5GB" → 5,000,000,000."""
    match = re.fullmatch(r"\s*([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([A-Za-z]*)\s*", text)
    size = float(match[1]) * UNITS.get(match[2].upper(), 0) if match else 0
    if size < 1:
        raise UserError(f"{flag} {text!r}: a size such as 500MB, 5GB or 2GiB is needed")
    return int(size)


def add_budget(parser: argparse.ArgumentParser, what: str) -> None:
    """--budget, of verbs with a recipe."""
    parser.add_argument(
        "--budget",
        dest="set",
        action="append",
        type="budget={}".format,
        metavar="FLOPS|HOURS",
        help=f"{what}: FLOPs such as 1e15, or wall time such as 0.5h or 30m (default: what the "
        "recipe says, heal.total_steps); the same as --config.budget",
    )
