"""What sparsify, narrow and quantize share: the text that they look at, what they say of losses on
it, and how they write."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from chopjax.commands.flags import add_max_shard_size


def add_text(group: argparse._ArgumentGroup, looks: str, sequences: str) -> None:
    """--data, --field, --sequences and --sequence-length.

    looks, sequences: the help of --data and of --sequences, without the part that verbs share.
    """
    add = group.add_argument
    add(
        "--data",
        action="append",
        metavar="FILE",
        help=f"text that {looks}: .jsonl, .txt, a folder or hf:NAME; may be given several times. "
        "With it the loss before and after is measured on other text of it",
    )
    add("--field", help="with --data: of a JSON line, the field with the text (default: text)")
    add("--sequences", type=int, metavar="N", help=f"documents to look at (default: {sequences})")
    add(
        "--sequence-length",
        type=int,
        metavar="T",
        help="tokens of each at most (default: the context length, at most 2048)",
    )


def add_output(parser: argparse.ArgumentParser, replaces: str) -> None:
    """--revision, --overwrite, --max-shard-size and --json. replaces: the help of --overwrite."""
    add = parser.add_argument_group("input and output").add_argument
    add("--revision", metavar="REV", help="branch, tag or commit of a hub id (default: main)")
    add("--overwrite", action="store_true", help=replaces)
    add_max_shard_size(add)
    add("--json", action="store_true", help="print one JSON object instead of the table")


def print_losses(screen: Any, done: Mapping[str, Any], changed: str = "pruned") -> None:
    """The losses of the parent and of the model that was changed, on which text."""
    import math

    where = "other sequences of it" if done["loss_held_back"] else "the same text"
    before, after = done["loss"]["parent"], done["loss"][changed]
    screen.print(
        f"loss on {where}, {done['loss_tokens']:,} tokens: parent {before:.4f}, {changed} "
        f"{after:.4f} nats; perplexity {math.exp(before):.3f} and {math.exp(after):.3f}"
    )


def looked_at(done: Mapping[str, Any]) -> str:
    return f"looked at {done['tokens']:,} tokens of {done['sequences']} sequences"
