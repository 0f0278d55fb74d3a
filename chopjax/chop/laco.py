"""LaCo's search: which layers can be folded into one while the output stays similar.

Axes: B batch, T time, D model, E what the head reads, L layers, R layers of the result.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from chopjax import interrupts
from chopjax.chop.calibration import CalibrationBatch, positions, real_tokens
from chopjax.chop.importance import Protect
from chopjax.chop.merge import Recipe, collapse, matrix, plain
from chopjax.chop.prefixes import advance, embed
from chopjax.models import decoder
from chopjax.models.compute import Compute
from chopjax.models.config import ModelConfig
from chopjax.models.parameters import Params

LAYERS_A_MERGE = 4  # the paper's C: layers that become one
INTERVAL = 2  # the paper's I: how far the next merge starts below an accepted one
THRESHOLDS = tuple(round(0.95 - 0.05 * step, 2) for step in range(39))  # 0.95 … -0.95


def laco(
    params: Params,
    config: ModelConfig,
    compute: Compute,
    batches: Sequence[CalibrationBatch],
    remove: int,
    protect: Protect,
    say: Callable[[str], None] = lambda message: None,
) -> Recipe:
    """Fold layers until `remove` of them are gone (arXiv 2402.11187, algorithm 1).

    From the top down, a layer takes in the C-1 that follow it; the merge stands if the mean cosine
    between the final hidden states of merged and original model stays above a threshold. The paper
    sets the threshold by hand for each model and ratio; here it is the highest of THRESHOLDS with
    which enough layers go. Protected layers are neither folded nor folded into. Holds a second copy
    of the blocks' parameters.
    """
    similarity = functools.cache(_similarity_to(params, config, compute, batches))
    for threshold in THRESHOLDS:
        recipe = _one_pass(similarity, config.num_layers, remove, protect, threshold)
        if len(recipe) == config.num_layers - remove:
            say(f"LaCo: {remove} layers go with a threshold of {threshold}")
            return recipe
    return _without_threshold(config.num_layers, remove, protect)


def _one_pass(
    similarity: Callable[[Recipe], float],
    num_layers: int,
    remove: int,
    protect: Protect,
    threshold: float,
) -> Recipe:
    recipe = plain(num_layers)
    place = num_layers - protect.last - LAYERS_A_MERGE
    while place >= protect.first and len(recipe) > num_layers - remove:
        room = len(recipe) - protect.last - 1 - place
        following = min(LAYERS_A_MERGE - 1, len(recipe) - (num_layers - remove), room)
        merged = collapse(recipe, place, following)
        if following > 0 and similarity(merged) > threshold:
            recipe = merged
            place = min(place - INTERVAL, len(recipe) - protect.last - LAYERS_A_MERGE)
        else:
            place -= 1
    return recipe


def _without_threshold(num_layers: int, remove: int, protect: Protect) -> Recipe:
    """So many layers go that one pass is not enough: fold from the top, again and again."""
    recipe = plain(num_layers)
    while len(recipe) > num_layers - remove:
        place = max(protect.first, len(recipe) - protect.last - LAYERS_A_MERGE)
        room = len(recipe) - protect.last - 1 - place
        recipe = collapse(recipe, place, min(room, len(recipe) - (num_layers - remove)))
    return recipe


def _similarity_to(
    params: Params, config: ModelConfig, compute: Compute, batches: Sequence[CalibrationBatch]
) -> Callable[[Recipe], float]:
    """Mean over tokens of the cosine between final hidden states, for a recipe."""

    def final(params: Params, batch: CalibrationBatch, count: int) -> jax.Array:
        layers_L = np.arange(config.num_layers, dtype=np.int32)
        hidden_BTD = embed(params, batch, config, compute)
        final_BTD: jax.Array = advance(params, hidden_BTD, layers_L, 0, count, config, compute)
        return final_BTD

    wanted = [final(params, batch, config.num_layers) for batch in batches]

    def similarity(recipe: Recipe) -> float:
        interrupts.check()
        merged = blend_params(params, matrix(recipe, config.num_layers))
        sums = [
            _cosines(params, wanted_BTD, final(merged, batch, len(recipe)), batch, config, compute)
            for batch, wanted_BTD in zip(batches, wanted, strict=True)
        ]
        total, count = np.asarray(jax.device_get(sums), np.float64).sum(axis=0)
        return float(total / count)

    return similarity


@jax.jit
def blend_params(params: Params, weights_RL: jax.Array) -> Params:
    """Parameters whose layer r is Σ weights_RL[r, l] · layer l, in float32, rounded once."""

    def blend(stacked: jax.Array) -> jax.Array:
        wide = stacked.astype(jnp.float32)
        mixed = jnp.einsum("RL,L...->R...", weights_RL, wide, precision="highest")
        return mixed.astype(stacked.dtype)

    return params | {"blocks": jax.tree.map(blend, params["blocks"])}


@functools.partial(jax.jit, static_argnames=("config", "compute"))
def _cosines(
    params: Params,
    one_BTD: jax.Array,
    other_BTD: jax.Array,
    batch: CalibrationBatch,
    config: ModelConfig,
    compute: Compute,
) -> tuple[jax.Array, jax.Array]:
    """Σ over tokens of the cosine after the final norm, and the number of tokens."""
    finish = decoder.parts(params, config, compute, positions(batch)).finish
    a_BTE, b_BTE = (finish(x).astype(jnp.float32) for x in (one_BTD, other_BTD))
    norms_BT = jnp.linalg.norm(a_BTE, axis=-1) * jnp.linalg.norm(b_BTE, axis=-1)
    cosine_BT = (a_BTE * b_BTE).sum(axis=-1) / jnp.maximum(norms_BT, 1e-30)
    real_BT = real_tokens(batch)
    return jnp.sum(cosine_BT, where=real_BT), jnp.sum(real_BT)
