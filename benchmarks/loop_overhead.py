"""What does the training loop add to the jitted step?

    python benchmarks/loop_overhead.py [--layers 4] [--steps 40] [--rounds 3] [--json]

`loop` is `chopjax.train.loop.train` as `chopjax train` calls it: batches read from a token store,
metrics.jsonl and TensorBoard written, the progress bar and the guard fed at every step. `bare` is
the same jitted step in a plain Python loop over one batch that is on the device already, the next
step begun before the last one is waited for. Rounds alternate; the first steps of a round are left
out (FIRST), and so are compiling and saving. The figures are medians of the seconds a step; the
ratio is loop over bare, and nothing below 1 is possible but by noise. The model's size makes a step
of about 100 ms on two cores. `input` is the same batches made one after the other by one thread and
put on the device, with nothing else at work: how many times faster than the step takes them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
from kills import prepare_data
from ml_collections import ConfigDict

from chopjax.models import mesh as meshes
from chopjax.models.families import translate
from chopjax.train import step as steps
from chopjax.train.feed import on_mesh, training_batches
from chopjax.train.loop import train
from chopjax.train.metrics import read_metrics
from chopjax.train.objectives import next_token
from chopjax.train.optimizer import make_optimizer
from chopjax.train.settings import default_config, read

FIRST = 5  # steps of a round that are not counted
SHAPE = {
    "model_type": "llama",
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=40, help="of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare_data(folder)
        config = recipe(folder, args.layers, args.steps)
        bare = make_bare(config)
        seconds: dict[str, list[float]] = {"loop": [], "bare": []}
        made: list[float] = []
        for number in range(args.rounds):
            made += make_batches(config, args.steps)[FIRST:]
            workdir = folder / f"run-{number}"
            train(config, workdir)
            rows = [row for row in read_metrics(workdir) if "step_seconds" in row]
            seconds["loop"] += [row["step_seconds"] for row in rows[FIRST:]]
            seconds["bare"] += bare(args.steps)[FIRST:]
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = medians["loop"] / medians["bare"]
    for name, value in medians.items():
        print(f"{name:6}{1e3 * value:9.2f} ms a step")
    batch = statistics.median(made)
    tokens = config.data.batch_size * config.data.sequence_length
    print(f"the loop's overhead: {100 * (ratio - 1):.2f} %")
    print(
        f"input: {1e3 * batch:.2f} ms a batch, {tokens / batch:,.0f} tokens/s: "
        f"{medians['bare'] / batch:.0f} times what the step takes"
    )
    if args.json:
        result = {
            "ours": medians["loop"],
            "peer": medians["bare"],
            "ratio": ratio,
            "unit": "seconds a step",
            "input_seconds": batch,
            "settings": SHAPE | vars(args),
        }
        print(json.dumps(result))
    return 0


def recipe(folder: Path, layers: int, total_steps: int) -> ConfigDict:
    config = default_config()
    config.scratch = SHAPE | {"num_hidden_layers": layers}
    config.tokenizer = str(folder / "tokenizer")
    config.total_steps = total_steps
    config.data.train = str(folder / "tokens")
    config.data.batch_size, config.data.sequence_length = 4, 256
    config.checkpoints.every = total_steps
    return config


def make_bare(config: ConfigDict) -> Any:
    """A function: so many steps → the seconds of each."""
    settings = read(config)
    model = translate(settings.scratch)[1]
    mesh = meshes.make_mesh()
    with jax.set_mesh(mesh):
        optimizer = make_optimizer(settings.optimizer, settings.total_steps)
        params = steps.abstract_params(model, settings.compute.param_dtype, mesh)
        abstract = steps.abstract_state(params, optimizer, settings, mesh)
        state = steps.begin_from_scratch(model, optimizer, settings, abstract)
        batch = on_mesh(training_batches(settings.data, settings.seed), 0, mesh)
        objective = next_token(model, settings)
        step = steps.make_train_step(objective, optimizer, settings, abstract, {}, mesh)
        step = step.lower(state, {}, batch).compile()

    def run(count: int) -> list[float]:
        nonlocal state
        seconds = []
        state, before = step(state, {}, batch)
        jax.block_until_ready(before)
        begun = time.perf_counter()
        state, before = step(state, {}, batch)
        for _ in range(count):
            state, metrics = step(state, {}, batch)
            jax.block_until_ready(before)
            seconds.append(time.perf_counter() - begun)
            begun, before = time.perf_counter(), metrics
        jax.block_until_ready(before)
        return seconds

    return run


def make_batches(config: ConfigDict, count: int) -> list[float]:
    """The seconds of each of so many batches, from the token store onto the device."""
    settings, mesh = read(config), meshes.make_mesh()
    batches = training_batches(settings.data, settings.seed)
    seconds = []
    for index in range(count):
        begun = time.perf_counter()
        jax.block_until_ready(on_mesh(batches, index, mesh))
        seconds.append(time.perf_counter() - begun)
    return seconds


if __name__ == "__main__":
    sys.exit(main())
