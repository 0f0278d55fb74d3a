"""A process with eight fake devices: a few steps of adapters on several meshes, with dropout, on a
base in floats and in four bits. Prints one JSON object. Run by test_adapter_runs.py."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"

import jax
import numpy as np
from checkpoints import write_checkpoint

from chopjax.checkpoint.describe import describe
from chopjax.models import mesh
from chopjax.models.adapter_settings import AdapterSettings
from chopjax.train import optimizer, step
from chopjax.train.base import read_base
from chopjax.train.settings import (
    ComputeSettings,
    DataSettings,
    OptimizerSettings,
    Settings,
)
from chopjax.train.task import task_of

STEPS, B, T = 2, 8, 12
SHAPE: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3}
KEEP = (0, 2)
# name → data, fsdp, tensor, microbatches, base
RUNS = {
    "float, one device": (1, 1, 1, 1, "float"),
    "float": (2, 2, 2, 2, "float"),
    "nf4, one device": (1, 1, 1, 1, "nf4"),
    "nf4": (2, 2, 2, 2, "nf4"),
    "int8, one device": (1, 1, 1, 1, "int8"),
    "int8": (1, 4, 2, 1, "int8"),
}


def batch_of(number: int, vocab: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(number)
    tokens = random.integers(0, vocab, (B, T + 1)).astype(np.int32)
    places = np.tile(np.arange(T, dtype=np.int32), (B, 1))
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segments": np.ones_like(places),
        "positions": places,
        "weights": np.ones(places.shape, np.float32),
    }


def run(model: Path, data: int, fsdp: int, tensor: int, parts: int, base: Any) -> dict[str, Any]:
    description = describe(str(model))
    config = description.config.keep(KEEP)
    settings = Settings(
        model=str(model),
        data=DataSettings(batch_size=B, sequence_length=T),
        optimizer=OptimizerSettings(name="adamw", peak_learning_rate=1e-2),
        adapter=AdapterSettings(rank=4, dropout=0.2, targets="all", base=base),
        compute=dataclasses.replace(ComputeSettings(loss_chunk=5), microbatches=parts),
    )
    made = mesh.make_mesh(data, fsdp, tensor, devices=jax.devices()[: data * fsdp * tensor])
    with jax.set_mesh(made):
        task = task_of(config, settings, made)
        rule = optimizer.make_optimizer(settings.optimizer, STEPS)
        abstract = step.abstract_state(task.trainable, rule, settings, made)
        frozen = {"base": read_base(settings, description, KEEP, task.frozen["base"], None)}
        state = step.begin({}, rule, settings, abstract, task.fresh)
        train_step = step.make_train_step(
            task.objective, rule, settings, abstract, task.frozen, made
        )
        curve = []
        for number in range(STEPS):
            batch = jax.device_put(batch_of(number, config.vocab_size), mesh.batch_sharding(made))
            state, metrics = train_step(state, frozen, batch)
            curve.append([float(metrics[name]) for name in ("loss", "grad_norm")])
        gate = frozen["base"]["blocks"]["mlp"]["gate"]
        codes = gate if base == "float" else gate.codes
        return {
            "curve": curve,
            "shard": list(codes.addressable_shards[0].data.shape),
            "a shard": list(
                state["params"]["blocks"]["mlp"]["gate"]["a"].addressable_shards[0].data.shape
            ),
        }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder) / "model", **SHAPE)
        model = Path(folder) / "model"
        print(json.dumps({name: run(model, *how) for name, how in RUNS.items()}))
