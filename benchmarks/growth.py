"""Does twice the work take twice the time, and no more?

    python benchmarks/growth.py [--only requests prepare chop sweep plan] [--doublings 4]
        [--rounds 3] [--json]

Work that grows with what users bring, doubled again and again, each size in a process of its own:

- requests: how the scorer plans so many requests, half of them behind examples that they share;
- prepare: so many documents to a token store;
- chop: half of a checkpoint of so many shards (a layer each, files of holes);
- sweep: so many points, each with other layers left, of a model of small layers, and the report;
- plan: the training step of so many layers, compiled for four chips of TPU v5e.

Printed are seconds of processor time, of child processes too, without imports and without what the
work is made of; medians over the rounds. Beside them the ratios of neighbours (2 is linear, less is
what does not grow), and the peak memory of the smallest and the largest size.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import resource
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
from workers import Worker

LLAMA = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 1024,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
SMALL = LLAMA | {"hidden_size": 32, "intermediate_size": 64, "torch_dtype": "float32"}
SWEEP = """
from chopjax.sweep_settings import default_config

def get_config():
    config = default_config()
    config.model = {model!r}
    config.text.train = config.text.held_out = {text!r}
    config.text.workers = 1
    config.strategies = "input"
    config.remove = {remove!r}
    return config
"""
PLAN = """
from chopjax.train.settings import default_config

def get_config():
    config = default_config()
    config.scratch = {shape!r}
    config.data.batch_size, config.data.sequence_length = 8, 256
    config.compute.dtype, config.compute.remat = "bfloat16", "full"
    config.mesh.data, config.mesh.fsdp = 1, -1
    return config
"""
Work = Callable[[], object]


# ------------------------------------------------------------------------------ What is doubled


def requests(folder: Path, size: int) -> Work:
    """Four choices a document; every second hundred of documents has its examples in front."""
    from chopjax.score.layout import Budget
    from chopjax.score.planning import make_plan

    draw = np.random.default_rng(0)
    made = []
    for document in range(size // 4):
        if document % 100 == 0:
            examples = draw.integers(0, 30_000, 400 * (document // 100 % 2))
        question = [*examples, *draw.integers(0, 30_000, draw.integers(30, 90))]
        made += [(question, draw.integers(0, 30_000, draw.integers(1, 40))) for _ in range(4)]
    return lambda: make_plan(made, 2048, Budget())


def prepare(folder: Path, size: int) -> Work:
    from synthetic_tasks import write_tokenizer

    from chopjax.data.prepare import prepare as prepared

    write_tokenizer(folder / "tokenizer", 1024)
    write_text(folder / "text.jsonl", size, 300)
    out = folder / "store"
    return lambda: prepared([folder / "text.jsonl"], folder / "tokenizer", out, workers=1)


def write_text(file: Path, documents: int, words: int) -> None:
    draw = np.random.default_rng(0)
    with file.open("w") as lines:
        for _ in range(documents):
            text = " ".join(f"w{n}" for n in draw.integers(0, 900, words))
            lines.write(json.dumps({"text": text}) + "\n")


def chop(folder: Path, size: int) -> Work:
    write_shards(folder / "parent", size)
    words = ["chop", str(folder / "parent"), str(folder / "out"), "--strategy", "max-gap"]
    return lambda: verb(*words, "--remove", "50%")


def write_shards(folder: Path, layers: int) -> None:
    """A checkpoint of holes: a shard a layer, and one with what is outside of the layers."""
    from chopjax.models import parameters
    from chopjax.models.families import table, translate

    raw = LLAMA | {"num_hidden_layers": layers}
    family, config = translate(raw)
    sizes, shards = parameters.sizes(config), {}
    for binding in table.bind(family, config, table.usual_naming(family)):
        tensors = shards.setdefault(layers if binding.layer is None else binding.layer, {})
        tensors[binding.source] = binding.row.source_shape(sizes)
    folder.mkdir()
    weight_map = {}
    for number, tensors in shards.items():
        name = f"model-{number + 1:05}-of-{layers + 1:05}.safetensors"
        weight_map |= dict.fromkeys(tensors, name)
        header, end = {}, 0
        for tensor, shape in tensors.items():
            start, end = end, end + 2 * math.prod(shape)
            header[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
        encoded = json.dumps(header).encode()
        with (folder / name).open("wb") as file:
            file.write(struct.pack("<Q", len(encoded)) + encoded)
            file.truncate(8 + len(encoded) + end)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(raw))


def sweep(folder: Path, size: int) -> Work:
    from random_checkpoint import write_checkpoint
    from synthetic_tasks import write_tokenizer

    write_tokenizer(folder / "model", SMALL["vocab_size"])
    write_checkpoint(folder / "model", SMALL | {"num_hidden_layers": size + 2}, "float32")
    write_text(folder / "text.jsonl", 4, 60)
    remove = ",".join(str(number) for number in range(1, size + 1))
    places = {"model": str(folder / "model"), "text": str(folder / "text.jsonl")}
    (folder / "recipe.py").write_text(SWEEP.format(remove=remove, **places))
    words = ["--config", str(folder / "recipe.py"), "--workdir", str(folder / "work")]
    return lambda: verb("sweep", *words)


def plan(folder: Path, size: int) -> Work:
    shape = LLAMA | {"num_hidden_layers": size}
    (folder / "recipe.py").write_text(PLAN.format(shape=shape))
    words = ["--config", str(folder / "recipe.py"), "--topology", "v5e:2x2", "--json"]
    return lambda: verb("plan", *words)


def verb(*words: str) -> None:
    from chopjax import cli

    if code := cli.main(list(words)):
        raise SystemExit(f"chopjax {words[0]} ended with {code}")


class Case(NamedTuple):
    make: Callable[[Path, int], Work]
    first: int  # the smallest size
    warm: int  # done before the clock starts, for what is imported and compiled once; 0: nothing
    unit: str


CASES = {
    "requests": Case(requests, 6250, 4, "requests"),
    "prepare": Case(prepare, 1000, 1, "documents"),
    "chop": Case(chop, 20, 8, "shards"),
    "sweep": Case(sweep, 2, 1, "points"),
    "plan": Case(plan, 8, 0, "layers"),
}


# --------------------------------------------------------------------------------- Measurement


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--doublings", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--first", type=int, help="the smallest size, in place of each one's own")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        name, size = args.worker
        print(json.dumps(work(name, int(size))))
        return 0
    rows = {name: grown(name, args) for name in args.only}
    if args.json:
        print(json.dumps({"unit": "ratio of seconds, work doubled", "rows": rows}))
    return 0


def grown(name: str, args: argparse.Namespace) -> dict[str, Any]:
    case = CASES[name]
    sizes = [(args.first or case.first) << number for number in range(args.doublings + 1)]
    rounds = [[measured(name, size) for size in sizes] for _ in range(args.rounds)]
    answers = list(zip(*rounds, strict=True))  # by size
    seconds = [statistics.median(each["seconds"] for each in same) for same in answers]
    peaks = [max(each["peak"] for each in same) for same in answers]
    row = {"sizes": sizes, "seconds": seconds, "ratios": ratios(seconds), "peaks": peaks}
    print(f"{name}: {' '.join(f'{size:,}' for size in sizes)} {case.unit}")
    print(f"  seconds {' '.join(f'{each:.2f}' for each in seconds)}")
    print(f"  ratios  {' '.join(f'{each:.2f}' for each in row['ratios'])}")
    print(f"  peak memory {peaks[0] / 1e6:,.0f} and {peaks[-1] / 1e6:,.0f} MB", flush=True)
    return row


def ratios(seconds: Sequence[float]) -> list[float]:
    return [after / before for before, after in itertools.pairwise(seconds)]


def measured(name: str, size: int) -> dict[str, Any]:
    """In a process of its own."""
    worker = Worker(__file__, name, str(size))
    try:
        return worker.ask(None)
    finally:
        worker.end()


def work(name: str, size: int) -> dict[str, float]:
    """Processor time and peak memory of one piece of work."""
    case = CASES[name]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        if case.warm:
            (warm := Path(folder, "warm")).mkdir()
            case.make(warm, case.warm)()
        (own := Path(folder, "own")).mkdir()
        run = case.make(own, size)
        begun = processor_time()
        run()
        seconds = processor_time() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "peak": peak}


def processor_time() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


if __name__ == "__main__":
    sys.exit(main())
