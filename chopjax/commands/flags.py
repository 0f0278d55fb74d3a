"""Flags that several verbs share."""

from __future__ import annotations

import argparse
import re

from chopjax.errors import UserError

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def add_max_shard_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
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
    add("--revision", help="branch, tag or commit of a hub id (default: main)")
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
        type=lambda text: None if text == "auto" else int(text),
        metavar="B",
        help="sequences of full length that a forward pass may hold; no result depends on it "
        "(default: fitted to the device)",
    )
    add("--fsdp", type=int, default=1, metavar="N", help="devices that share the parameters")
    add("--tensor", type=int, default=1, metavar="N", help="devices that share each layer's work")


def check_scoring_model(args: argparse.Namespace) -> None:
    """Raises UserError for flags of add_scoring_model that make no sense."""
    for flag in ("batch_size", "fsdp", "tensor"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise UserError(f"--{flag.replace('_', '-')} {value}: at least 1 is needed")


def add_recipe(parser: argparse.ArgumentParser, workdir: str) -> None:
    """--config, --workdir and what changes single fields. workdir: the help for the second."""
    add = parser.add_argument
    add("--config", required=True, metavar="FILE", help="the recipe, a Python file of configs/")
    add("--workdir", required=True, metavar="DIR", help=workdir)
    add(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="set a field of the config; --config.FIELD=VALUE says the same",
    )


def parse_bytes(text: str, flag: str) -> int:
    """ "5GB" → 5,000,000,000."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if not found or found[2].upper() not in UNITS or float(found[1]) == 0:
        raise UserError(f"{flag} {text!r}: a size such as 500MB, 5GB or 2GiB is needed")
    return int(float(found[1]) * UNITS[found[2].upper()])
