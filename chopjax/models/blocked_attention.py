"""Causal attention for processors: in blocks of queries, which half of the scores suffices for.

A block of queries meets the keys that its window reaches, up to its end, and no others, as many
sequences at a time as leave the scores in the processor's cache. The forward pass keeps its output
and the logarithm of every softmax's denominator; the backward pass computes the scores from them
again, block by block, and no [T, T] array is ever kept (FlashAttention, arXiv 2205.14135, appendix
B.4, without the tiles over keys).

Axes: B batch, T time, S keys that a block meets, N query heads, K key/value heads, G = N/K,
H head size, X = T·G queries that share a key/value head, Q those of a block.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from chopjax.models.groups import in_groups
from chopjax.models.remat import kept_residual
from chopjax.models.scores import PLAIN, Scores, d_products, shaped

BLOCK = 64  # positions whose queries are a block; more for more than MOST_BLOCKS
MOST_BLOCKS = 8  # every one is compiled by itself
SCORES = 1 << 20  # that exist at a time, unless a block of one sequence has more

# query, key, value, segments, output, log_z_BKX1
Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array | None, jax.Array, jax.Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def blocked_attention(
    query_BTNH: jax.Array,
    key_BTKH: jax.Array,
    value_BTKH: jax.Array,
    segments_BT: jax.Array | None = None,
    scores: Scores = PLAIN,
) -> jax.Array:
    """softmax(scores)·v over earlier positions of the same segment; [B, T, N, H].

    Scores and softmax are float32 (float64 for float64 inputs). segments_BT: int32, or None for
    one segment. Differentiable in reverse mode, once.
    """
    return _forward(query_BTNH, key_BTKH, value_BTKH, segments_BT, scores)[0]


def _forward(
    query_BTNH: jax.Array,
    key_BTKH: jax.Array,
    value_BTKH: jax.Array,
    segments_BT: jax.Array | None,
    scores: Scores,
) -> tuple[jax.Array, Residuals]:
    T, N, H = query_BTNH.shape[1:]
    K = key_BTKH.shape[2]
    G = N // K
    scale = scores.scale_of(H)

    def rows(arrays: Any) -> tuple[jax.Array, jax.Array]:
        query_BTNH, key_BTKH, value_BTKH, segments_BT = arrays
        query_BKXH = _by_key_head(query_BTNH * scale, K)
        key_BKTH, value_BKTH = _by_key_head(key_BTKH, K), _by_key_head(value_BTKH, K)
        outs, log_zs = [], []
        for start, end, first in _blocks(T, scores.window):
            keys, distance_QS = slice(first, end), _distance(start, end, first)
            visible = _visible(distance_QS, start, first, scores.window, G, segments_BT)
            score_BKQS = _product(
                "BKQH,BKSH->BKQS", query_BKXH[:, :, start * G : end * G], key_BKTH[:, :, keys]
            )
            score_BKQS = shaped(score_BKQS, scores, distance_QS[None])
            score_BKQS = jnp.where(visible, score_BKQS, -jnp.inf)
            top_BKQ1 = score_BKQS.max(axis=-1, keepdims=True)  # finite: a token sees itself
            weight_BKQS = jnp.exp(score_BKQS - top_BKQ1)
            z_BKQ1 = weight_BKQS.sum(axis=-1, keepdims=True)
            weight_BKQS = weight_BKQS.astype(value_BKTH.dtype)
            outs.append(_product("BKQS,BKSH->BKQH", weight_BKQS, value_BKTH[:, :, keys]) / z_BKQ1)
            log_zs.append(top_BKQ1 + jnp.log(z_BKQ1))
        out_BKXH, log_z_BKX1 = (jnp.concatenate(parts, axis=2) for parts in (outs, log_zs))
        return _by_time(out_BKXH, T).astype(query_BTNH.dtype), log_z_BKX1

    inputs = (query_BTNH, key_BTKH, value_BTKH, segments_BT)
    out_BTNH, log_z_BKX1 = in_groups(rows, inputs, _rows_at_once(query_BTNH), T)
    out_BTNH, log_z_BKX1 = kept_residual(out_BTNH), kept_residual(log_z_BKX1)
    return out_BTNH, (*inputs, out_BTNH, log_z_BKX1)


def _backward(
    scores: Scores, residuals: Residuals, d_out_BTNH: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    T, N, H = d_out_BTNH.shape[1:]
    K = residuals[1].shape[2]
    G = N // K
    scale = scores.scale_of(H)

    def rows(arrays: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        query_BTNH, key_BTKH, value_BTKH, segments_BT, out_BTNH, log_z_BKX1, d_out_BTNH = arrays
        query_BKXH = _by_key_head(query_BTNH * scale, K)
        key_BKTH, value_BKTH = _by_key_head(key_BTKH, K), _by_key_head(value_BTKH, K)
        d_out_BKXH = _by_key_head(d_out_BTNH, K)
        inner_BTN1 = jnp.sum(_wide(out_BTNH) * _wide(d_out_BTNH), axis=-1, keepdims=True)
        inner_BKX1 = _by_key_head(inner_BTN1, K)
        # Gradients of keys and values are made with time last: the product is twice as fast so.
        query_BKHX, d_out_BKHX = (_turned(x) for x in (query_BKXH, d_out_BKXH))
        d_key_BKHT = d_value_BKHT = jnp.zeros_like(_wide(key_BKTH).swapaxes(-1, -2))
        d_queries = []
        for start, end, first in _blocks(T, scores.window):
            block, keys = slice(start * G, end * G), slice(first, end)
            distance_QS = _distance(start, end, first)
            visible = _visible(distance_QS, start, first, scores.window, G, segments_BT)
            key_BKSH, value_BKSH = key_BKTH[:, :, keys], value_BKTH[:, :, keys]
            product_BKQS = _product("BKQH,BKSH->BKQS", query_BKXH[:, :, block], key_BKSH)
            score_BKQS = shaped(product_BKQS, scores, distance_QS[None])
            score_BKQS = jnp.where(visible, score_BKQS, -jnp.inf)
            weight_BKQS = jnp.exp(score_BKQS - log_z_BKX1[:, :, block])
            d_weight_BKQS = _product("BKQH,BKSH->BKQS", d_out_BKXH[:, :, block], value_BKSH)
            d_score_BKQS = weight_BKQS * (d_weight_BKQS - inner_BKX1[:, :, block])
            d_score_BKQS = d_products(product_BKQS, scores, d_score_BKQS)
            weight_BKQS = weight_BKQS.astype(value_BKTH.dtype)
            d_score_BKQS = d_score_BKQS.astype(key_BKTH.dtype)
            d_queries.append(_product("BKQS,BKSH->BKQH", d_score_BKQS, key_BKSH))
            d_key_BKHS = _product("BKHQ,BKQS->BKHS", query_BKHX[..., block], d_score_BKQS)
            d_value_BKHS = _product("BKHQ,BKQS->BKHS", d_out_BKHX[..., block], weight_BKQS)
            d_key_BKHT = d_key_BKHT.at[..., keys].add(d_key_BKHS)
            d_value_BKHT = d_value_BKHT.at[..., keys].add(d_value_BKHS)
        d_query_BTNH = _by_time(jnp.concatenate(d_queries, axis=2), T) * scale
        return (
            d_query_BTNH.astype(query_BTNH.dtype),
            d_key_BKHT.transpose(0, 3, 1, 2).astype(key_BTKH.dtype),
            d_value_BKHT.transpose(0, 3, 1, 2).astype(value_BTKH.dtype),
        )

    inputs = (*residuals, d_out_BTNH)
    return *in_groups(rows, inputs, _rows_at_once(d_out_BTNH), T), None


blocked_attention.defvjp(_forward, _backward)


def _rows_at_once(query_BTNH: jax.Array) -> int:
    """How many sequences' blocks of scores stay in the cache."""
    T, N = query_BTNH.shape[1:3]
    _, block, _ = next(_blocks(T))
    return SCORES // (N * block * T)


def _blocks(length: int, window: int | None = None) -> Iterator[tuple[int, int, int]]:
    """First query of a block, one past its last, and the first key that any of them sees."""
    size = max(BLOCK, -(-length // MOST_BLOCKS))
    for start in range(0, length, size):
        yield start, min(start + size, length), max(0, start - window + 1) if window else 0


def _distance(start: int, end: int, first: int) -> jax.Array:
    """[Q, S]: positions from the queries of a block back to the keys from `first` on."""
    return jnp.arange(start, end)[:, None] - jnp.arange(first, end)


def _visible(
    distance_QS: jax.Array,
    start: int,
    first: int,
    window: int | None,
    groups: int,
    segments_BT: jax.Array | None,
) -> jax.Array:
    """[B or 1, 1, Q·G, S]: which keys from `first` on the queries of a block see."""
    visible_QS = distance_QS >= 0
    if window is not None:
        visible_QS &= distance_QS < window
    visible_BQS = visible_QS[None]
    if segments_BT is not None:
        end = start + distance_QS.shape[0]
        visible_BQS &= segments_BT[:, start:end, None] == segments_BT[:, None, first:end]
    return jnp.repeat(visible_BQS, groups, axis=1)[:, None]


def _by_key_head(x_BTNH: jax.Array, num_kv_heads: int) -> jax.Array:
    """[B, T, N, H] → [B, K, X, H], X = T·G."""
    B, T, N, H = x_BTNH.shape
    x_BTKGH = x_BTNH.reshape(B, T, num_kv_heads, N // num_kv_heads, H)
    return x_BTKGH.swapaxes(1, 2).reshape(B, num_kv_heads, -1, H)


def _by_time(x_BKXH: jax.Array, length: int) -> jax.Array:
    """[B, K, X, H] → [B, T, N, H]."""
    B, K, _, H = x_BKXH.shape
    return x_BKXH.reshape(B, K, length, -1, H).swapaxes(1, 2).reshape(B, length, -1, H)


def _turned(x: jax.Array) -> jax.Array:
    """The last two axes swapped, here and not inside a product that reads them."""
    turned: jax.Array = jax.lax.optimization_barrier(x.swapaxes(-1, -2))
    return turned


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(jnp.float32, x.dtype))


def _product(equation: str, left: jax.Array, right: jax.Array) -> jax.Array:
    wide = jnp.promote_types(jnp.float32, left.dtype)
    return jnp.einsum(equation, left, right, preferred_element_type=wide)
