"""Softmaxes over some of the keys, to be joined (FlashAttention, arXiv 2205.14135, section 3.1).

Axes: B batch, Q queries, S keys, K key/value heads, G query heads of each, H head size, X = Q·G.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from chopjax.models.scores import Scores, shaped

HIDDEN = -1e30  # score of what is not visible


class Part(NamedTuple):
    """A softmax over some of the keys, not yet divided. Float32."""

    top_BKX1: jax.Array
    total_BKX1: jax.Array
    mixed_BKXH: jax.Array


def part_of(
    query_BKXH: jax.Array,
    key_BKSH: jax.Array,
    value_BKSH: jax.Array,
    visible_BKXS: jax.Array,
    distance_BQS: jax.Array | None,
    scores: Scores,
) -> Part:
    """The softmax over these keys. visible_BKXS: bool, broadcast. distance_BQS: positions from a
    query back to a key, where there are slopes."""
    score_BKXS = _product("BKXH,BKSH->BKXS", query_BKXH, key_BKSH)
    score_BKXS *= scores.scale_of(query_BKXH.shape[-1])
    score_BKXS = shaped(score_BKXS, scores, distance_BQS)
    score_BKXS = jnp.where(visible_BKXS, score_BKXS, HIDDEN)
    top_BKX1 = score_BKXS.max(axis=-1, keepdims=True)
    weight_BKXS = jnp.exp(score_BKXS - top_BKX1)
    total_BKX1 = weight_BKXS.sum(axis=-1, keepdims=True)
    weight_BKXS = weight_BKXS.astype(value_BKSH.dtype)
    return Part(top_BKX1, total_BKX1, _product("BKXS,BKSH->BKXH", weight_BKXS, value_BKSH))


def join(one: Part, other: Part) -> Part:
    """The softmax over the keys of both."""
    top_BKX1 = jnp.maximum(one.top_BKX1, other.top_BKX1)
    by, other_by = jnp.exp(one.top_BKX1 - top_BKX1), jnp.exp(other.top_BKX1 - top_BKX1)
    return Part(
        top_BKX1,
        one.total_BKX1 * by + other.total_BKX1 * other_by,
        one.mixed_BKXH * by + other.mixed_BKXH * other_by,
    )


def _product(equation: str, left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.einsum(equation, left, right, preferred_element_type=jnp.float32)
