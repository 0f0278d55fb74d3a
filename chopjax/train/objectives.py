"""What a step minimises. Axes: B batch, T time, E what the head reads, V vocabulary."""

from __future__ import annotations

from typing import Any

import jax

from chopjax.models import decoder
from chopjax.models.adapters import student
from chopjax.models.chunks import chunk_of
from chopjax.models.compute import Compute
from chopjax.models.config import ModelConfig
from chopjax.models.head import head_of
from chopjax.models.loss import cross_entropy
from chopjax.models.parameters import Params
from chopjax.train.settings import Settings
from chopjax.train.step import Batch, Metrics, Objective


def compute_of(settings: Settings) -> Compute:
    """How the decoder computes."""
    chosen = settings.compute
    return Compute(chosen.dtype, chosen.remat, chosen.attention, chosen.layers)


def next_token(config: ModelConfig, settings: Settings) -> Objective:
    """Language modelling: Σ w·(nll + z_loss·log²Z) over the batch's tokens, in nats.

    What is trained is the whole decoder, or adapters on a frozen one (adapters.student). Metrics:
    `loss`, Σ w·nll.
    """
    compute, masked = compute_of(settings), settings.data.mask_documents

    def objective(trainable: Params, frozen: Any, batch: Batch) -> tuple[jax.Array, Metrics]:
        params = student(trainable, frozen, batch, settings.adapter, settings.masks == "fixed")
        hidden_BTE = decoder.hidden_states(
            params,
            config,
            compute,
            batch["tokens"],
            batch["segments"] if masked else None,
            batch["positions"] if masked else None,
        )
        total, nll = cross_entropy(
            hidden_BTE,
            head_of(params, config),
            batch["targets"],
            batch["weights"],
            settings.optimizer.z_loss,
            chunk_of(settings.compute.loss_chunk),
        )
        return total, {"loss": nll}

    return objective
