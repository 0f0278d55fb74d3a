"""Loss on held-out text, in windows of the training length."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from chopjax.data.batches import EvaluationBatches, eval_batches
from chopjax.data.store import open_store
from chopjax.models.adapter_settings import AdapterSettings
from chopjax.models.config import ModelConfig
from chopjax.models.parameters import Params
from chopjax.progress import progress
from chopjax.train.feed import on_mesh
from chopjax.train.objectives import next_token
from chopjax.train.settings import Settings
from chopjax.train.step import abstract_params, make_eval_step


def held_out_batches(settings: Settings) -> EvaluationBatches | None:
    """The batches that cover the held-out store once; None where there is no store."""
    if not settings.data.evaluation:
        return None
    batches = eval_batches(
        open_store(settings.data.evaluation),
        settings.evaluation.batch_size or settings.data.batch_size,
        settings.data.sequence_length,
        settings.data.mask_documents,
    )
    return batches[: settings.evaluation.max_batches or None]


def evaluate(
    eval_step: Any,
    params: Params,
    frozen: Any,
    batches: EvaluationBatches,
    mesh: Mesh,
    stopped: Callable[[], bool] = lambda: False,
) -> tuple[float, int]:
    """Mean loss in nats per token over held-out text, and its tokens; cut short when stopped."""
    total = counted = 0.0
    with progress("held-out loss", len(batches), "batches") as bar:
        for index in range(len(batches)):
            if stopped():
                break
            loss, weight = jax.device_get(eval_step(params, frozen, on_mesh(batches, index, mesh)))
            total, counted = total + float(loss), counted + float(weight)
            bar.advance(loss=total / max(counted, 1))
    return total / max(counted, 1), int(counted)


def held_out_loss(
    config: ModelConfig, params: Params, settings: Settings, mesh: Mesh
) -> tuple[float, int]:
    """What a training run with these settings would measure of this model, and the tokens.

    Call it with the mesh set (jax.set_mesh). settings.data.evaluation must name a store.
    """
    batches = held_out_batches(settings)
    assert batches is not None
    abstract = abstract_params(config, settings.compute.param_dtype, mesh)
    settings = dataclasses.replace(settings, adapter=AdapterSettings())  # they are in params
    eval_step = make_eval_step(next_token(config, settings), abstract, {}, mesh)
    return evaluate(eval_step, params, {}, batches, mesh)
