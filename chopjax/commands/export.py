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
    add(
        "--onto",
        choices=("trained", "original"),
        default="trained",
        help="of a run with adapters: add them to the weights that they were trained on, which of "
        "a quantized base are the dequantized ones (default), or to the base's own",
    )
    add(
        "--adapter",
        action="store_true",
        help="of a run with adapters: do not merge them; OUT is the folder that peft loads, with "
        "the chopped base in OUT/base",
    )
    add("--overwrite", action="store_true", help="replace OUT if `chopjax export` wrote it")
    add_max_shard_size(add)
    add(
        "--push-to-hub",
        metavar="OWNER/NAME",
        help="then upload OUT to this repository of the Hugging Face hub; the token is that of "
        "`hf auth login` or HF_TOKEN",
    )
    add("--private", action="store_true", help="with --push-to-hub: a new repository is private")


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    import jax

    # Bytes only move: an accelerator that is busy training must not be asked for.
    jax.config.update("jax_platforms", "cpu")

    from chopjax.checkpoint.export import export_model
    from chopjax.checkpoint.peft_folder import export_adapter
    from chopjax.disk.files import expanded
    from chopjax.errors import UserError
    from chopjax.models import parameters
    from chopjax.progress import say

    if args.private and not args.push_to_hub:
        raise UserError("--private is for --push-to-hub OWNER/NAME")
    if args.push_to_hub:
        from chopjax.checkpoint.hub_upload import check_upload, upload
        from chopjax.disk.atomic import check_free

        check_free(Path(args.out), "export", args.overwrite)  # before the hub is asked
        check_upload(args.push_to_hub, args.private)
    most = parse_bytes(args.max_shard_size, "--max-shard-size")
    if args.adapter:
        if args.dtype or args.onto != "trained":
            raise UserError("--adapter writes adapters and base as they are: no --dtype, no --onto")
        exported = export_adapter(args.dir, Path(args.out), args.step, most, args.overwrite)
    else:
        exported = export_model(
            args.dir, Path(args.out), args.step, args.dtype, most, args.overwrite, args.onto
        )
    say(
        f"{args.out}: {exported.family.model_type}, {exported.config.num_layers} layers, "
        f"{parameters.count(exported.config):,} parameters"
    )
    if args.push_to_hub:
        say(f"uploading {args.out} to {args.push_to_hub}")
        say(upload(expanded(args.out), args.push_to_hub, args.private))
    return 0
