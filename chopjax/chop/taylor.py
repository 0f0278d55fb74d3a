"""Taylor importance: how much the loss would change to first order if a layer's weights were zero.

Axes: B batch, T time, D model, L layers.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from chopjax import interrupts
from chopjax.chop.calibration import CalibrationBatch, positions, predictions
from chopjax.models import decoder
from chopjax.models.compute import Compute
from chopjax.models.config import ModelConfig
from chopjax.models.decoder import Layer, Parts
from chopjax.models.head import head_of
from chopjax.models.loss import cross_entropy
from chopjax.models.parameters import Params


def taylor(
    params: Params,
    config: ModelConfig,
    compute: Compute,
    batches: Iterable[CalibrationBatch],
) -> np.ndarray:
    """Σ|w·∂loss/∂w| over all weights of each layer, [L] float64; the mean over batches.

    Shortened LLaMA's Taylor criterion (arXiv 2402.02834, section 3.1). The loss is the batch's mean
    in nats per token; the absolute value is taken of a batch's gradient, so that, as in the paper,
    which uses a single batch, the number depends on how much text a batch holds.
    """
    scores = []
    for batch in batches:
        interrupts.check()
        batch_scores = _scores(params, batch, config, compute)
        scores.append(np.asarray(batch_scores, np.float64))
    means_L: np.ndarray = np.mean(scores, axis=0)
    return means_L


@functools.partial(jax.jit, static_argnames=("config", "compute"))
def _scores(
    params: Params,
    batch: CalibrationBatch,
    config: ModelConfig,
    compute: Compute,
) -> jax.Array:
    """The backward pass by hand, a layer at a time: a layer's gradient is summed up and dropped, so
    that there is never a second copy of the parameters."""
    parts = decoder.parts(params, config, compute, positions(batch))
    targets_BT, weights_BT = predictions(batch)
    weights_BT /= jnp.maximum(weights_BT.sum(), 1)

    def forward(x_BTD: jax.Array, layer: Layer) -> tuple[jax.Array, jax.Array]:
        return parts.block(x_BTD, layer), x_BTD

    def loss(x_BTD: jax.Array) -> jax.Array:
        head = head_of(params, config)
        return cross_entropy(parts.finish(x_BTD), head, targets_BT, weights_BT)[0]

    def backward(d_BTD: jax.Array, inputs: tuple[jax.Array, Layer]) -> tuple[jax.Array, jax.Array]:
        x_BTD, layer = inputs
        d_BTD, d_params = pulled_back(parts, layer, x_BTD, d_BTD)
        products = jax.tree.map(
            lambda w, g: jnp.sum(jnp.abs(_wide(w) * _wide(g))), layer.params, d_params
        )
        return d_BTD, jnp.stack(jax.tree.leaves(products)).sum()

    last_BTD, entering_LBTD = jax.lax.scan(forward, parts.embed(batch.tokens_BT), parts.stack)
    _, scores_L = jax.lax.scan(
        backward, jax.grad(loss)(last_BTD), (entering_LBTD, parts.stack), reverse=True
    )
    return scores_L


def pulled_back(
    parts: Parts, layer: Layer, x_BTD: jax.Array, d_BTD: jax.Array
) -> tuple[jax.Array, Params]:
    """The gradients of what enters one layer and of its parameters.

    d_BTD: that of what leaves it.
    """

    def block(x_BTD: jax.Array, params: Params) -> jax.Array:
        return parts.block(x_BTD, layer._replace(params=params))

    _, pull = jax.vjp(block, x_BTD, layer.params)
    d_x_BTD, d_params = pull(d_BTD)
    return d_x_BTD, d_params


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32)
