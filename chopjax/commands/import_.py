"""`chopjax import`: a Hugging Face checkpoint to Orbax, parameters born sharded on the mesh."""

from __future__ import annotations

import argparse
import re

from chopjax.commands.flags import add_processes
from chopjax.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")


EXAMPLE = """\
chopjax import halved imported --mesh fsdp=4,tensor=2
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="folder of a Hugging Face checkpoint, or hub id owner/name")
    add("dir", metavar="DIR", help="folder to write; it appears when it is complete")
    add("--revision", metavar="REV", help="branch, tag or commit of a hub id (default: main)")
    add(
        "--keep",
        metavar="LIST",
        help="layers to import, from 0, ends inclusive (0,13-23); the others are not read",
    )
    add(
        "--mesh",
        metavar="SIZES",
        default="fsdp=-1",
        help="devices along data, fsdp and tensor, such as fsdp=4,tensor=2; one of them may be -1, "
        "what the others leave (default: fsdp=-1)",
    )
    add(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="type of every parameter (default: as found, so that export gives the same bytes)",
    )
    add("--strict", action="store_true", help="NaN or infinity is an error and not a warning")
    add("--overwrite", action="store_true", help="replace DIR if `chopjax import` wrote it")
    add_processes(parser)


def run(args: argparse.Namespace) -> int:
    from chopjax.launch import distributed, processes

    sizes = _mesh_sizes(args.mesh)
    shared = {"mesh": sizes, "keep": args.keep, "dtype": args.dtype, "revision": args.revision}
    with distributed.joined(processes.launch_of(args), shared):
        _import(args, sizes)
    return 0


def _import(args: argparse.Namespace, sizes: dict[str, int]) -> None:
    import dataclasses
    from pathlib import Path

    from chopjax.checkpoint.describe import describe
    from chopjax.checkpoint.load import load
    from chopjax.checkpoint.orbax_folder import save_import
    from chopjax.checkpoint.packed import say_decoded
    from chopjax.chop.surgery import chop_description
    from chopjax.disk.atomic import check_free
    from chopjax.keep import parse_keep
    from chopjax.models import parameters
    from chopjax.models.mesh import make_mesh, shardings
    from chopjax.progress import progress, say

    out = Path(args.dir)
    check_free(out, "import", args.overwrite)  # before anything is downloaded
    description = describe(args.model, args.revision)
    say_decoded(description.weights)
    keep = None if args.keep is None else parse_keep(args.keep, description.config.num_layers)
    config = description.config if keep is None else description.config.keep(keep)
    mesh = make_mesh(sizes["data"], sizes["fsdp"], sizes["tensor"])
    loaded = load(args.model, args.revision, keep, shardings(config, mesh), args.dtype, args.strict)
    if keep is not None:
        loaded = chop_description(loaded, keep)
    if args.dtype:
        loaded = dataclasses.replace(loaded, dtypes=None)
    with progress(f"write {args.dir}"):
        save_import(out, loaded, loaded.params, args.overwrite)
    say(
        f"{args.dir}: {loaded.family.model_type}, {config.num_layers} layers, "
        f"{parameters.count(config):,} parameters"
    )


def _mesh_sizes(text: str) -> dict[str, int]:
    """ "fsdp=4,tensor=2" → sizes; axes that are not named have one device."""
    sizes = dict.fromkeys(MESH_AXES, 1)
    for part in text.split(","):
        axis, _, size = part.strip().partition("=")
        if axis not in sizes or not re.fullmatch(r"-?[0-9]{1,9}", size):
            raise UserError(
                f"--mesh {text!r}: AXIS=SIZE with commas between is needed, such as "
                f"fsdp=4,tensor=2; the axes are {', '.join(MESH_AXES)}"
            )
        sizes[axis] = int(size)
    return sizes
