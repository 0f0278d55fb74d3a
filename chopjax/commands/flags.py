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


def parse_bytes(text: str, flag: str) -> int:
    """ "5GB" → 5,000,000,000."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if not found or found[2].upper() not in UNITS or float(found[1]) == 0:
        raise UserError(f"{flag} {text!r}: a size such as 500MB, 5GB or 2GiB is needed")
    return int(float(found[1]) * UNITS[found[2].upper()])
