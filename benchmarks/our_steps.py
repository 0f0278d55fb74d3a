"""Training steps as `chopjax train` runs them, over a folder's weights: our side of comparisons.

Axes: B rows of a batch, T tokens of a row, R rank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from workers import Step

from chopjax.checkpoint.describe import describe
from chopjax.checkpoint.load import load
from chopjax.compilation import compiled
from chopjax.models import mesh as meshes
from chopjax.train import step as steps
from chopjax.train.base import read_base
from chopjax.train.optimizer import make_optimizer
from chopjax.train.settings import Settings
from chopjax.train.task import Task, task_of


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled step. memory: bytes of arguments, results and what lies between, by the compiler,
    beside_state: of the last two alone. flops: the model's, a token, by `formula`."""

    step: Step
    memory: int | None
    beside_state: int | None
    flops: int
    formula: str


class Run:
    """A training state, which steps of any shape and attention go on with.

    begins: what each adapter's A begins with, "LAYER.MATRIX" → [R, inputs]; drawn by default.
    """

    def __init__(
        self, folder: Path, settings: Settings, begins: Mapping[str, np.ndarray] | None = None
    ):
        self._description, self._settings = describe(str(folder)), settings
        self._config, self._begins = self._description.config, begins or {}
        self._mesh = meshes.make_mesh(*dataclasses.astuple(settings.mesh))
        jax.set_mesh(self._mesh)
        task = self._task(settings)
        self._optimizer = make_optimizer(settings.optimizer, settings.total_steps)
        self._fresh = task.fresh
        self._abstract = steps.abstract_state(task.trainable, self._optimizer, settings, self._mesh)
        self._frozen: dict[str, Any] = {}
        if settings.adapter.rank:
            self._frozen["base"] = read_base(
                settings, self._description, None, task.frozen["base"], None
            )
        self.begin()

    def begin(self) -> None:
        """The state before the first step."""
        self._state: Any = None  # frees the one before
        params: Any = {}
        if not self._settings.adapter.rank:
            where = steps.shardings_of(self._abstract["params"])
            dtype = self._settings.compute.param_dtype
            params = load(self._description, shardings=where, dtype=dtype).params
        self._state = steps.begin(
            params, self._optimizer, self._settings, self._abstract, self._fresh
        )
        for matrix in {name.split(".")[1] for name in self._begins}:
            layers = range(self._config.num_layers)
            stacked = np.stack([self._begins[f"{layer}.{matrix}"].T for layer in layers])
            self._state["params"]["blocks"]["mlp"][matrix]["a"] = jnp.asarray(stacked)

    def _task(self, settings: Settings) -> Task:
        return task_of(self._config, settings, self._mesh)

    def program(self, rows: int, length: int, attention: str = "auto") -> Program:
        """The step over [rows, length] tokens, compiled."""
        settings = dataclasses.replace(
            self._settings,
            data=dataclasses.replace(self._settings.data, batch_size=rows, sequence_length=length),
            compute=dataclasses.replace(self._settings.compute, attention=attention),
        )
        task = self._task(settings)
        made = steps.make_train_step(
            task.objective, self._optimizer, settings, self._abstract, task.frozen, self._mesh
        )
        batch = steps.abstract_batch(settings, self._mesh)
        train_step = compiled(made.lower(self._abstract, task.frozen, batch))
        where = meshes.batch_sharding(self._mesh)

        def step(tokens: np.ndarray) -> float:
            placed = jax.device_put(batch_of(tokens), where)
            self._state, metrics = train_step(self._state, self._frozen, placed)
            loss = float(metrics["loss"])
            jax.block_until_ready(self._state)
            return loss

        return Program(step, *_memory(train_step), task.flops, task.formula)


def batch_of(tokens: np.ndarray) -> dict[str, np.ndarray]:
    """[B, T+1] ids → a batch of one document a row, all tokens of which count."""
    B, T = tokens.shape[0], tokens.shape[1] - 1
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segments": np.ones((B, T), np.int32),
        "positions": np.tile(np.arange(T, dtype=np.int32), (B, 1)),
        "weights": np.ones((B, T), np.float32),
    }


def _memory(program: Any) -> tuple[int | None, int | None]:
    sizes = program.memory_analysis()
    if sizes is None:
        return None, None
    beside = sizes.output_size_in_bytes + sizes.temp_size_in_bytes - sizes.alias_size_in_bytes
    return int(sizes.argument_size_in_bytes + beside), int(beside)
