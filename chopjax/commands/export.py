"""`chopjax export`: an import or a training run back to a Hugging Face checkpoint."""

from __future__ import annotations

import argparse

from chopjax.commands.flags import add_max_shard_size, parse_bytes

EXAMPLE = """\
chopjax export runs/heal healed
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("dir", metavar="DIR", help="folder of `chopjax import`, or a training run's workdir")
    add("out", metavar="OUT", help="folder to write; it appears when it is complete")
    add("--step", type=int, metavar="N", help="checkpoint of a training run (default: the latest)")
    add(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="type of every tensor (default: as imported, or as config.json says after training)",
    )
    add("--overwrite", action="store_true", help="replace OUT if `chopjax export` wrote it")
    add_max_shard_size(add)


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    import jax

    # Bytes only move: an accelerator that is busy training must not be asked for.
    jax.config.update("jax_platforms", "cpu")

    from chopjax.checkpoint.export import export_model
    from chopjax.models import parameters
    from chopjax.progress import say

    found = export_model(
        args.dir,
        Path(args.out),
        args.step,
        args.dtype,
        parse_bytes(args.max_shard_size, "--max-shard-size"),
        args.overwrite,
    )
    say(
        f"{args.out}: {found.family.model_type}, {found.config.num_layers} layers, "
        f"{parameters.count(found.config):,} parameters"
    )
    return 0
