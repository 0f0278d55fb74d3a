"""What a run trains, what it only carries, and what it minimises, out of its settings."""

from __future__ import annotations

import dataclasses
from typing import Any

from jax.sharding import Mesh

from chopjax.models import adapter_settings, adapters, flops
from chopjax.models.config import ModelConfig
from chopjax.train.objectives import next_token
from chopjax.train.settings import Settings
from chopjax.train.step import Objective, abstract_params


@dataclasses.dataclass(frozen=True)
class Task:
    """trainable: shapes and shardings of what is differentiated, moved and saved. frozen: of what
    the objective only reads, a dict; {} where all of the decoder is trained. held_out: the
    objective that evaluation measures, next-token loss whatever is minimised. flops: of one token
    of a training step, by the formula of models/flops.py."""

    objective: Objective
    held_out: Objective
    trainable: Any
    frozen: dict[str, Any]
    flops: int


def task_of(model: ModelConfig, settings: Settings, mesh: Mesh) -> Task:
    """The task of a run whose decoder is `model` now."""
    language_modelling = next_token(model, settings)
    floats = abstract_params(model, settings.compute.param_dtype, mesh)
    adapter, length = settings.adapter, settings.data.sequence_length
    if adapter.rank:
        trainable = adapters.abstract(model, adapter, mesh)
        frozen = {"base": adapters.abstract_base(model, adapter, floats, mesh)}
        work = flops.adapters_per_token(model, length, adapter_settings.count(model, adapter))
    else:
        trainable, frozen = floats, {}
        work = flops.training_per_token(model, length)
    return Task(language_modelling, language_modelling, trainable, frozen, work)
