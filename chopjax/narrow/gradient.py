"""LLM-Pruner's scores: how much the loss would change to first order without a unit's weights
(arXiv 2305.11627, §3.2, importance by element; `param_first` in its code).

Axes: B batch, T time, D model, N query heads, K key/value heads, F feed-forward, U units.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from chopjax.chop.calibration import CalibrationBatch, positions
from chopjax.chop.taylor import pulled_back
from chopjax.models import decoder, parameters
from chopjax.models.compute import Compute
from chopjax.models.config import ModelConfig
from chopjax.models.parameters import Params
from chopjax.narrow.units import units

_AXES = {"mlp": "F", "heads": "NK", "embed": "D"}


@functools.partial(jax.jit, static_argnames=("config", "compute"))
def pulled(
    blocks: Params,
    batch: CalibrationBatch,
    x_BTD: jax.Array,
    d_BTD: jax.Array,
    config: ModelConfig,
    compute: Compute,
) -> tuple[jax.Array, Params]:
    """The gradients of what enters the one layer of `blocks`, and of its parameters without the
    layer axis. d_BTD: that of what leaves it."""
    parts = decoder.parts({"blocks": blocks}, config, compute, positions(batch))
    layer = jax.tree.map(lambda stacked: stacked[0], parts.stack)
    return pulled_back(parts, layer, x_BTD, d_BTD)


@functools.partial(jax.jit, static_argnames=("config", "kinds"))
def first_order(
    blocks: Params, gradients: Params, config: ModelConfig, kinds: Sequence[str]
) -> dict[str, jax.Array]:
    """Kind → Σ|w·∂loss/∂w| over the rows and columns of every unit, summed over the matrices that
    have them, [U]. Biases, norms, embeddings and head are not counted.

    gradients: of the one layer of `blocks`, as `pulled` gives them.
    """
    scores = {kind: jnp.zeros(units(config)[kind]) for kind in kinds}
    for path, kernel in parameters.kernels(config).items():
        _, part, name = path.split("/")
        product = jnp.abs(blocks[part][name][0] * gradients[part][name])
        letters = [*kernel.leading[1:], *kernel.inputs, *kernel.outputs]
        for kind in kinds:
            found = [axis for axis, letter in enumerate(letters) if letter in _AXES[kind]]
            if not found or (letters[found[0]] == "K" and config.num_kv_heads == 1):
                continue  # of a key or value that all queries share, nothing goes
            others = tuple(axis for axis in range(len(letters)) if axis != found[0])
            scores[kind] += product.sum(others).reshape(len(scores[kind]), -1).sum(axis=1)
    return scores
