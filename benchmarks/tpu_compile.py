"""A training step of chopjax and MaxText's, through one TPU compiler, on a machine without a TPU.

    python benchmarks/tpu_compile.py [--peer-python PATH] [--topology SLICE ...] [--all-layers]
        [--config FILE] [--config.NAME=VALUE ...] [--try NAME=VALUE,... ...] [--tuned-only] [--json]

Both compile Llama-2-7B cut to 16 layers (--all-layers: all 32) for the same slice, with AdamW, the
same batches, bfloat16 products and float32 parameters; one reader (chopjax/plan) reads both
programs, and one formula gives the step's seconds, a lower bound. Rows: as the recipe ships it;
tuned, by the parts that a batch is worked off in; with compiler options that are no
default, too. Of MaxText: with its defaults; as its own script for the chip; tuned; with the
options. Memory by part, FLOPs against the model's, HBM bytes, collectives, seconds, and the CPU
seconds from tracing to the layout of memory (of ours with imports); generating machine code is left
out.

PATH: a Python with MaxText. Without one ours is compiled alone. --try, once or several times:
settings of ours to try in place of the benchmark's own; the fastest that fits is tuned. A
compilation takes up to two minutes and 2 to 4 GB, and there are about sixteen a slice.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tpu_programs import Job, Row, job, ours, peers
from tpu_table import as_text

from chopjax.errors import UserError
from chopjax.plan.topology import Topology, parse, prepare_environment
from chopjax.progress import say

RECIPE = Path(__file__).parents[1] / "configs/just_chop_llama2_7b.py"
SLICES = ("v5p:4x4x4", "v5e:16x16", "v6e:16x16")
GET_THE_PEER = """\
MaxText is not compared. It wants Python 3.12 and an environment of its own:
    python3.12 -m venv DIR
    DIR/bin/pip install 'maxtext[tpu]==0.2.5' libtpu==0.0.52
    python benchmarks/tpu_compile.py --peer-python DIR/bin/python"""

# The recipe's mesh is for v5p: it does not follow the sides of v6e's slices, and on v5e two copies
# of the parameters, not four, leave room to gather ahead.
MESH = {"v6e": ("mesh.data=1",), "v5e:16x16": ("mesh.data=2",)}
# Ours is tuned by the number of parts and when they gather the kernels, with the layers in a loop
# and one after the other. Fewest parts are not always fastest: unrolled, the compiler may compute
# again to make them fit.
PARTS_OF_OURS = ("microbatches=1", "microbatches=2", "microbatches=2 gather=step")
LAYERS = ("loop", "unrolled")
_SPARSE_CORES = {
    f"xla_tpu_enable_sparse_core_collective_offload_{kind}": "true"
    for kind in ("all_gather", "2d_all_gather", "reduce_scatter", "all_reduce")
}
# By chip: options that hide collectives and are no default (docs/pods.md).
OPTIONS = {
    "v5p": _SPARSE_CORES,
    "v6e": _SPARSE_CORES,
    "v5e": {
        "xla_enable_async_all_reduce": "true",
        "xla_enable_async_reduce_scatter_fusion": "true",
        "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": "true",
        "xla_tpu_enable_async_collective_fusion_fuse_reduce_scatter": "true",
    },
}

# MaxText is tuned by the first number of parts that fits: products and attention's results are
# kept, parameters are split over all chips or, so that gathers stay gathers, over 16 of them.
_KEPT = {
    "remat_policy": "minimal_with_context",
    "use_iota_embed": False,
    "sa_use_fused_bwd_kernel": True,
}
PARTS: tuple[int, ...] = (1, 2, 4)
MESHES: tuple[dict[str, object], ...] = (
    {},
    {"ici_data_parallelism": -1, "ici_fsdp_parallelism": 16},
)
# As configs/tpu/CHIP/llama2_7b*.sh of MaxText 0.2.5 have them, with as many tokens a chip at once
# where the batch has so many. Left out: v6e's larger tiles of attention, which at 2048 positions
# cover more of what the mask hides, and the flags of continuation fusion
# (xla_tpu_enable_async_collective_fusion and two more) but for v5e: libtpu 0.0.52 refuses them.
_OVERLAP = ("xla_tpu_overlap_compute_collective_tc", "xla_enable_async_all_gather")
_DATA_PARALLEL = (
    "xla_tpu_enable_data_parallel_all_reduce_opt",
    "xla_tpu_data_parallel_opt_different_sized_ops",
)
_FUSED = (
    "xla_tpu_enable_async_collective_fusion",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather",
    "xla_tpu_enable_async_collective_fusion_multiple_steps",
)
SCRIPTS: dict[str, tuple[dict[str, object], dict[str, str]]] = {
    "v5p": (
        {
            "remat_policy": "minimal",
            "use_iota_embed": True,
            "gradient_accumulation_steps": 4,
        },
        {
            **dict.fromkeys((*_OVERLAP, *_DATA_PARALLEL), "true"),
            "xla_tpu_megacore_fusion_allow_ags": "false",
            "xla_enable_async_collective_permute": "true",
            "xla_tpu_enable_ag_backward_pipelining": "true",
        },
    ),
    "v5e": (
        {
            "remat_policy": "save_qkv_proj",
            "use_iota_embed": True,
            "gradient_accumulation_steps": 2,
        },
        dict.fromkeys((*_OVERLAP, *_DATA_PARALLEL, *_FUSED), "true"),
    ),
    "v6e": (
        {"remat_policy": "full", "attention": "flash"},
        {**dict.fromkeys(_OVERLAP, "true"), "xla_tpu_scoped_vmem_limit_kib": "98304"},
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--topology", nargs="+", default=SLICES, metavar="SLICE", help="such as v5p:4x4x4")
    add("--all-layers", action="store_true", help="the steps before the chop")
    add("--config", type=Path, default=RECIPE, metavar="FILE", help="the recipe")
    add("--try", dest="tried", action="append", metavar="NAME=VALUE,...")
    add("--peer-python", type=Path, metavar="PATH", help="a Python with MaxText")
    add("--tuned-only", action="store_true", help="without MaxText's defaults and its script")
    add("--json", action="store_true", help="the last line is one JSON object")
    args, more = parser.parse_known_args()
    if unknown := [flag for flag in more if not flag.startswith("--config.")]:
        parser.error(f"there is no flag {unknown[0]}")
    args.flags = [flag.removeprefix("--config.") for flag in more]
    prepare_environment()
    rows: list[Row] = []
    try:
        if args.peer_python is not None:
            check_peer(args.peer_python)
        for topology in [parse(name) for name in args.topology]:
            found = list(contest(args, topology))
            print(as_text(found), flush=True)
            rows += found
    except UserError as error:
        parser.error(str(error))
    if args.peer_python is None:
        print(GET_THE_PEER)
    if args.json:
        print(json.dumps({"rows": rows}))
    return 0


def check_peer(python: Path) -> None:
    """Raises UserError where this is no Python that has MaxText."""
    look = "import importlib.util, sys; sys.exit(importlib.util.find_spec('maxtext') is None)"
    try:
        code = subprocess.run([python, "-c", look], stdin=subprocess.DEVNULL).returncode
    except OSError as error:
        raise UserError(f"--peer-python {python}: {error.strerror}") from None
    if code:
        raise UserError(f"--peer-python {python}: it has no MaxText\n{GET_THE_PEER}")


def contest(args: argparse.Namespace, topology: Topology) -> Iterator[Row]:
    """The rows of one slice, as their programs are compiled."""

    def with_flags(*flags: str) -> Job:
        return job(args.config, flags, topology, args.all_layers)

    suited = MESH.get(topology.name, MESH.get(topology.chip.name, ()))
    base = [*suited, *args.flags]
    shipped = our_row("as shipped", with_flags(*base), base)
    yield shipped
    group = "compute" if args.all_layers else "compute.after_chop"
    own = [
        ",".join(f"{group}.{each}" for each in (f"layers={layers}", *parts.split()))
        for layers, parts in itertools.product(LAYERS, PARTS_OF_OURS)
    ]
    tried = ([*base, *one.split(",")] for one in args.tried or own)
    tuned = [our_row("tuned", with_flags(*flags), flags) for flags in tried]
    best = fastest([shipped, *tuned]) | {"name": "tuned"}
    yield best
    options = OPTIONS.get(topology.chip.name, {})
    if options and best["fits"]:
        as_setting = ",".join(f"{name}={value}" for name, value in options.items())
        flags = [*best["settings"], f"{group}.compiler_options={as_setting}"]
        yield our_row("with options", with_flags(*flags), flags)
    if args.peer_python is not None:
        asked = with_flags(*base)
        if not args.tuned_only:
            yield from untuned(asked, args.peer_python)
        yield from peer_rows(asked, args.peer_python, options)


def untuned(asked: Job, python: Path) -> Iterator[Row]:
    yield from peer_row("defaults", asked, python, {}, {})
    if script := SCRIPTS.get(asked.topology.chip.name):
        yield from peer_row("its script", asked, python, *script)


def peer_rows(asked: Job, python: Path, options: dict[str, str]) -> Iterator[Row]:
    """options: of the last row."""
    fitting: list[tuple[dict[str, object], Row]] = []
    parts = PARTS
    for mesh in MESHES:
        for number in parts:
            settings = {**_KEPT, "gradient_accumulation_steps": number, **mesh}
            row = peer_row("tuned", asked, python, settings, {})
            if row and row[0]["fits"]:
                fitting.append((settings, row[0]))
                # Parameters over fewer chips take more room, not less.
                parts = tuple(each for each in parts if each >= number)
                break
    if not fitting:
        return
    yield fastest([row for _, row in fitting])
    if options:
        rows = [peer_row("with options", asked, python, one, options) for one, _ in fitting]
        yield fastest([row for found in rows for row in found])


def fastest(rows: list[Row]) -> Row:
    """Of those that fit; the last where none does."""
    fitting = [row for row in rows if row["fits"]]
    return min(fitting, key=lambda row: row["step_seconds"]) if fitting else rows[-1]


def our_row(name: str, asked: Job, flags: list[str]) -> Row:
    say(f"chopjax on {asked.topology.name}, {name}: {' '.join(flags) or 'the recipe'}")
    return told({"side": "chopjax", "name": name, "settings": flags} | ours(asked))


def peer_row(
    name: str, asked: Job, python: Path, settings: dict[str, object], options: dict[str, str]
) -> list[Row]:
    """None where the batch cannot be split so."""
    flags = [f"{key}={value}" for key, value in settings.items()]
    flags += [f"--{key}={value}" for key, value in options.items()]
    say(f"MaxText on {asked.topology.name}, {name}: {' '.join(flags) or 'its base.yml'}")
    row = peers(asked, python, settings, options)
    return [] if row is None else [told({"side": "MaxText", "name": name, "settings": flags} | row)]


def told(row: Row) -> Row:
    if row["fits"]:
        size = row["memory"]["total"] / 2**30
        say(f"  {size:.1f} GiB, {row['step_seconds']:.3f} s, {100 * row['mfu']:.1f} %")
    else:
        say(f"  refused: {row['refusal']}")
    return row


if __name__ == "__main__":
    sys.exit(main())
