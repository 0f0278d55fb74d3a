"""How long a training step takes here, without a run: no weights are read, nothing is written."""

from __future__ import annotations

import statistics
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp

from chopjax import interrupts
from chopjax.compilation import compiled
from chopjax.models import mesh as meshes
from chopjax.models.config import ModelConfig
from chopjax.progress import progress
from chopjax.train.compiler_options import read_options
from chopjax.train.optimizer import make_optimizer
from chopjax.train.settings import Settings
from chopjax.train.step import BATCH_DTYPES, abstract_state, begin, make_train_step, shardings_of
from chopjax.train.task import task_of
from chopjax.train.teacher import Teacher

WARM, TIMED = 2, 7  # steps after compilation that are not counted, and that are


def step_seconds(model: ModelConfig, settings: Settings, teacher: Teacher | None = None) -> float:
    """The median over a few steps after compilation, on made-up numbers of the run's shapes.

    teacher: that of settings.teacher.model.
    """
    mesh = meshes.make_mesh(
        settings.mesh.data, settings.mesh.fsdp, settings.mesh.tensor, settings.mesh.slices
    )
    with jax.set_mesh(mesh), progress("time a step", WARM + TIMED, "steps") as bar:
        optimizer = make_optimizer(settings.optimizer, settings.total_steps)
        task = task_of(model, settings, mesh, teacher)
        abstract = abstract_state(task.trainable, optimizer, settings, mesh)
        rows = meshes.batch_sharding(mesh)
        shape = (settings.data.batch_size, settings.data.sequence_length)
        batch = {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=rows)
            for name, dtype in BATCH_DTYPES.items()
        }
        step = make_train_step(
            task.objective, optimizer, settings, abstract, task.frozen, mesh, task.matrices
        )
        lowered = step.lower(abstract, task.frozen, batch)
        program = compiled(lowered, read_options(settings.compute.compiler_options))
        state = begin(_made_up(task.trainable), optimizer, settings, abstract)
        frozen, example = _made_up(task.frozen), _made_up(batch)
        times = []
        for _ in range(WARM + TIMED):
            interrupts.check()
            begun = perf_counter()
            state, metrics = program(state, frozen, example)
            jax.block_until_ready(metrics)
            times.append(perf_counter() - begun)
            bar.advance()
    return statistics.median(times[WARM:])


def _made_up(abstract: Any) -> Any:
    """Arrays of these shapes, of small numbers and of ids that every vocabulary has."""

    def make() -> Any:
        return jax.tree.map(
            lambda leaf: jnp.full(
                leaf.shape, 1e-2 if jnp.issubdtype(leaf.dtype, jnp.floating) else 1, leaf.dtype
            ),
            abstract,
        )

    return jax.jit(make, out_shardings=shardings_of(abstract))()
