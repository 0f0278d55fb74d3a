"""What a run trains, what it only carries, and what it minimises, out of its settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from chopjax.models import adapter_settings, adapters, flops
from chopjax.models.config import ModelConfig
from chopjax.models.mesh import replicated
from chopjax.models.parameters import Params
from chopjax.train import dimchop, projections
from chopjax.train.distillation import distilled, from_top_k
from chopjax.train.objectives import next_token
from chopjax.train.settings import Settings
from chopjax.train.step import Fresh, Objective, abstract_params
from chopjax.train.teacher import Teacher, is_base


@dataclasses.dataclass(frozen=True)
class Task:
    """trainable: shapes and shardings of what is differentiated, moved and saved. frozen: of what
    the objective only reads: `base` under adapters, `teacher`; where the base is a chop of the
    teacher `rows`, which of its layers, in place of `base`. held_out: the objective that
    evaluation measures, next-token loss whatever is minimised. fresh: a random key → what of the
    trainable part no model brings along. flops: of one token of a training step, by `formula`.
    matrices: with DimCHOP, those that columns are masked in."""

    objective: Objective
    held_out: Objective
    trainable: Any
    frozen: dict[str, Any]
    fresh: Fresh
    flops: int
    formula: str
    matrices: Sequence[dimchop.Matrix] = ()


def task_of(
    model: ModelConfig, settings: Settings, mesh: Mesh, teacher: Teacher | None = None
) -> Task:
    """The task of a run whose decoder is `model` now. teacher: that of settings.teacher.model."""
    assert bool(settings.teacher.model) == (teacher is not None)
    language_modelling = next_token(model, settings)
    floats = abstract_params(model, settings.compute.param_dtype, mesh)
    adapter, length = settings.adapter, settings.data.sequence_length
    if adapter.rank:
        trainable = adapters.abstract(model, adapter, mesh)
        frozen = {"base": adapters.abstract_base(model, adapter, floats, mesh)}
        work = flops.adapters_per_token(model, length, adapter_settings.count(model, adapter))
        if settings.masks == "fixed":
            adapted = adapter_settings.adapted(model, adapter)
            work = flops.masked_adapters_per_token(model, length, adapted)
    else:
        trainable, frozen = floats, {}
        work = flops.training_per_token(model, length)

    def fresh(key: jax.Array) -> Params:
        return adapters.init(model, adapter, key) if adapter.rank else {}

    task = Task(
        objective=language_modelling,
        held_out=language_modelling,
        trainable=trainable,
        frozen=frozen,
        fresh=fresh,
        flops=work,
        formula=formula_of(settings),
        matrices=dimchop.matrices_of(model) if settings.dimchop.final else (),
    )
    if settings.teacher.top_k:
        return dataclasses.replace(task, objective=from_top_k(model, settings))
    return task if teacher is None else _taught(task, model, settings, mesh, teacher)


def formula_of(settings: Settings) -> str:
    """How Task.flops is counted."""
    with_adapters = flops.MASKED if settings.masks == "fixed" else flops.ADAPTED
    formula = with_adapters if settings.adapter.rank else flops.FORMULA
    return formula + (flops.TAUGHT if settings.teacher.model else "")


def _taught(
    task: Task, model: ModelConfig, settings: Settings, mesh: Mesh, teacher: Teacher
) -> Task:
    """The same with a teacher: its objective, its parameters, and maps to its widths."""
    asked, adapter = settings.teacher, settings.adapter
    dtype = settings.compute.dtype if asked.dtype == "same" else asked.dtype
    if is_base(settings):
        floats = abstract_params(teacher.config, settings.compute.param_dtype, mesh)
        shape, where = (model.num_layers,), replicated(mesh)
        frozen = {
            "teacher": adapters.abstract_base(teacher.config, adapter, floats, mesh),
            "rows": jax.ShapeDtypeStruct(shape, jnp.int32, sharding=where),
        }
    else:
        frozen = task.frozen | {"teacher": abstract_params(teacher.config, dtype, mesh)}
    maps, length = projections.shapes(model, teacher.config, asked), settings.data.sequence_length
    return dataclasses.replace(
        task,
        objective=distilled(model, settings, teacher),
        trainable=task.trainable | projections.abstract(maps, mesh),
        frozen=frozen,
        fresh=lambda key: task.fresh(key) | projections.init(maps, key),
        flops=task.flops
        + flops.teaching_per_token(teacher.config, length, head=bool(asked.logits))
        + projections.training_per_token(maps),
    )
