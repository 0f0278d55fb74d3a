"""Does a healing step take the memory that was planned? Llama-2-7B less 8 layers, scaled down.

    python benchmarks/healing_memory.py [--widths 256 512] [--steps 2] [--json]

The 7B does not fit this machine, so its shape is made narrower and nothing else: 24 layers (32 less
8), V=32,000, T=2,048, F = 2.69 D in heads of 128, random weights, all settings of
configs/deeper_layers_llama2_7b.py (an NF4 base, rank 2, bfloat16, remat `dots`) with batches of two
sequences in one part. Each width is a process of its own.

measured: how far the resident set (VmHWM) grows over the steps, from what it was with the state
in memory. planned: what this machine's compiler says that the step needs beside the state, that is
temporaries, and results that take no argument's place. Then what `chopjax plan` says of the same
shape on a TPU v5e, and at the end what it says of the 7B itself.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from workers import Worker, peak_memory, reset_peak_memory, serve, timed

RECIPE = Path(__file__).parents[1] / "configs" / "deeper_layers_llama2_7b.py"
TOPOLOGY = "v5e:1x1"
ROWS, LENGTH, LAYERS, HEAD = 2, 2048, 24, 128
SEVEN = {"hidden_size": 4096, "intermediate_size": 11_008}


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        serve(lambda: measured_step(Path(args.worker[1])))
        return 0
    for width in args.widths:
        if width < HEAD or width % HEAD:
            parser.error(f"--widths: {width} is not a multiple of {HEAD}, the size of a head")
    rows = {width: measure(width, args.steps) for width in args.widths}
    seven = planned_on_chip([])
    print(f"the 7B itself on {TOPOLOGY}, batches of the recipe: {seven['total'] / 2**30:.2f} GiB")
    if args.json:
        print(json.dumps({"widths": rows, "7b": seven}))
    return 0


def shape(width: int) -> dict[str, Any]:
    """config.json of the chop, so wide."""
    return {
        "model_type": "llama",
        "vocab_size": 32_000,
        "hidden_size": width,
        "intermediate_size": width * SEVEN["intermediate_size"] // SEVEN["hidden_size"],
        "num_hidden_layers": LAYERS,
        "num_attention_heads": width // HEAD,
        "num_key_value_heads": width // HEAD,
        "max_position_embeddings": LENGTH,
        "tie_word_embeddings": False,
    }


def measure(width: int, steps: int) -> dict[str, Any]:
    from random_checkpoint import write_checkpoint

    with tempfile.TemporaryDirectory() as name:
        write_checkpoint(Path(name), shape(width), "bfloat16")
        worker = Worker(__file__, "step", name)
        try:
            row = worker.ask(steps)
        finally:
            worker.close()
        flags = {"model": name, "chop.strategy": "", "chop.remove": "", "data.batch_size": ROWS}
        flags |= {"compute.microbatches": 1}
        row["chip"] = planned_on_chip([f"--config.{key}={flags[key]}" for key in flags])
    beside, whole = row["chip"]["temporaries"], row["chip"]["total"]
    print(
        f"D={width}: measured {row['measured'] / 1e9:.2f} GB, planned {row['planned'] / 1e9:.2f} "
        f"({row['measured'] / row['planned']:.2f}); {TOPOLOGY}: {beside / 1e9:.2f} GB beside the "
        f"state, {whole / 2**30:.2f} GiB in all",
        flush=True,
    )
    return row


def measured_step(folder: Path) -> Callable[[int], dict[str, Any]]:
    """In the worker: bytes measured and planned of so many steps over the folder's weights."""
    from our_steps import Run

    from chopjax.train.config_file import load_config
    from chopjax.train.settings import read

    config = load_config(RECIPE)
    config.model = str(folder)
    config.chop.strategy = config.chop.remove = ""
    config.data.train = "not needed"
    config.data.batch_size, config.compute.microbatches = ROWS, 1
    program = Run(folder, read(config)).program(ROWS, LENGTH)
    step = timed(program.step, (ROWS, LENGTH), shape(HEAD)["vocab_size"])

    def answer(steps: int) -> dict[str, Any]:
        # What compiling left to the allocator would hide what the step takes.
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        reset_peak_memory()
        before = peak_memory()
        found = step(steps)
        grown = found["peak_steps"] - before
        return {"measured": grown, "planned": program.beside_state, "seconds": found["seconds"]}

    return answer


def planned_on_chip(flags: list[str]) -> dict[str, int]:
    """Bytes on the chip by `chopjax plan`: in all, and of them what is not state, base or batch."""
    command = [sys.executable, "-m", "chopjax.cli", "plan", "--config", str(RECIPE), "--json"]
    done = subprocess.run([*command, "--topology", TOPOLOGY, *flags], stdout=subprocess.PIPE)
    done.check_returncode()
    memory = json.loads(done.stdout)["phases"][-1]["memory"]
    return {
        "total": memory["total"],
        "temporaries": memory["gradients"] + memory["activations"],
    }


if __name__ == "__main__":
    sys.exit(main())
