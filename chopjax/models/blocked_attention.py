"""Causal attention for processors: in blocks of queries, which half of the scores suffices for.

A block of queries meets the keys up to its end and no others, one sequence at a time, so that the
scores stay in the processor's cache. The forward pass keeps its output and the logarithm of every
softmax's denominator; the backward pass computes the scores from them again, block by block, and
no [T, T] array is ever kept (FlashAttention, arXiv 2205.14135, appendix B.4, without the tiles
over keys).

Axes: B batch, T time, S keys up to a block's end, Q queries of a block, N query heads, K key/value
heads, G = N/K, H head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from chopjax.models.remat import kept

BLOCK = 128  # queries; more where a sequence would have more than MOST_BLOCKS
MOST_BLOCKS = 8  # every one is compiled by itself

# query, key, value, segments, output, log_z_BKGT1
Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array | None, jax.Array, jax.Array]


@jax.custom_vjp
def blocked_attention(
    query_BTNH: jax.Array,
    key_BTKH: jax.Array,
    value_BTKH: jax.Array,
    segments_BT: jax.Array | None = None,
) -> jax.Array:
    """softmax(q·k / √H)·v over earlier positions of the same segment; [B, T, N, H].

    Scores and softmax are float32 (float64 for float64 inputs). segments_BT: int32, or None for
    one segment. Differentiable in reverse mode, once.
    """
    return _forward(query_BTNH, key_BTKH, value_BTKH, segments_BT)[0]


def _forward(
    query_BTNH: jax.Array,
    key_BTKH: jax.Array,
    value_BTKH: jax.Array,
    segments_BT: jax.Array | None,
) -> tuple[jax.Array, Residuals]:
    T, H = query_BTNH.shape[1], query_BTNH.shape[3]
    K = key_BTKH.shape[2]

    def row(arrays: Any) -> tuple[jax.Array, jax.Array]:
        query_TNH, key_TKH, value_TKH, segments_T = arrays
        query_KGTH = _by_key_head(query_TNH, K) * H**-0.5
        outs, log_zs = [], []
        for start, end in _blocks(T):
            score_KGQS = _product("KGQH,SKH->KGQS", query_KGTH[:, :, start:end], key_TKH[:end])
            score_KGQS = jnp.where(_visible(start, end, segments_T), score_KGQS, -jnp.inf)
            top_KGQ1 = score_KGQS.max(axis=-1, keepdims=True)  # finite: a token sees itself
            weight_KGQS = jnp.exp(score_KGQS - top_KGQ1)
            z_KGQ1 = weight_KGQS.sum(axis=-1, keepdims=True)
            weight_KGQS = weight_KGQS.astype(value_TKH.dtype)
            out_KGQH = _product("KGQS,SKH->KGQH", weight_KGQS, value_TKH[:end]) / z_KGQ1
            outs.append(out_KGQH)
            log_zs.append(top_KGQ1 + jnp.log(z_KGQ1))
        out_KGTH, log_z_KGT1 = (jnp.concatenate(parts, axis=2) for parts in (outs, log_zs))
        return _by_time(out_KGTH).astype(query_TNH.dtype), log_z_KGT1

    inputs = (query_BTNH, key_BTKH, value_BTKH, segments_BT)
    out_BTNH, log_z_BKGT1 = jax.lax.map(row, inputs)
    out_BTNH, log_z_BKGT1 = kept(out_BTNH), kept(log_z_BKGT1)
    return out_BTNH, (*inputs, out_BTNH, log_z_BKGT1)


def _backward(
    residuals: Residuals, d_out_BTNH: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    T, H = d_out_BTNH.shape[1], d_out_BTNH.shape[3]
    K = residuals[1].shape[2]

    def row(arrays: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        query_TNH, key_TKH, value_TKH, segments_T, out_TNH, log_z_KGT1, d_out_TNH = arrays
        query_KGTH = _by_key_head(query_TNH, K) * H**-0.5
        d_out_KGTH = _by_key_head(d_out_TNH, K)
        inner_TN1 = jnp.sum(_wide(out_TNH) * _wide(d_out_TNH), axis=-1, keepdims=True)
        inner_KGT1 = _by_key_head(inner_TN1, K)
        d_queries = []
        d_key_TKH, d_value_TKH = jnp.zeros_like(_wide(key_TKH)), jnp.zeros_like(_wide(value_TKH))
        for start, end in _blocks(T):
            query_KGQH, d_out_KGQH = query_KGTH[:, :, start:end], d_out_KGTH[:, :, start:end]
            score_KGQS = _product("KGQH,SKH->KGQS", query_KGQH, key_TKH[:end])
            score_KGQS = jnp.where(_visible(start, end, segments_T), score_KGQS, -jnp.inf)
            weight_KGQS = jnp.exp(score_KGQS - log_z_KGT1[:, :, start:end])
            d_weight_KGQS = _product("KGQH,SKH->KGQS", d_out_KGQH, value_TKH[:end])
            d_score_KGQS = weight_KGQS * (d_weight_KGQS - inner_KGT1[:, :, start:end])
            weight_KGQS = weight_KGQS.astype(value_TKH.dtype)
            d_score_KGQS = d_score_KGQS.astype(key_TKH.dtype)
            d_queries.append(_product("KGQS,SKH->KGQH", d_score_KGQS, key_TKH[:end]))
            d_key_TKH = d_key_TKH.at[:end].add(_product("KGQS,KGQH->SKH", d_score_KGQS, query_KGQH))
            d_value_TKH = d_value_TKH.at[:end].add(
                _product("KGQS,KGQH->SKH", weight_KGQS, d_out_KGQH)
            )
        d_query_TNH = _by_time(jnp.concatenate(d_queries, axis=2)) * H**-0.5
        return (
            d_query_TNH.astype(query_TNH.dtype),
            d_key_TKH.astype(key_TKH.dtype),
            d_value_TKH.astype(value_TKH.dtype),
        )

    d_query_BTNH, d_key_BTKH, d_value_BTKH = jax.lax.map(row, (*residuals, d_out_BTNH))
    return d_query_BTNH, d_key_BTKH, d_value_BTKH, None


blocked_attention.defvjp(_forward, _backward)


def _blocks(length: int) -> Iterator[tuple[int, int]]:
    size = max(BLOCK, -(-length // MOST_BLOCKS))
    for start in range(0, length, size):
        yield start, min(start + size, length)


def _visible(start: int, end: int, segments_T: jax.Array | None) -> jax.Array:
    """[Q, S]: which keys up to `end` the queries of a block see."""
    visible_QS = jnp.arange(start, end)[:, None] >= jnp.arange(end)
    if segments_T is not None:
        visible_QS &= segments_T[start:end, None] == segments_T[:end]
    return visible_QS


def _by_key_head(x_TNH: jax.Array, num_kv_heads: int) -> jax.Array:
    """[T, N, H] → [K, G, T, H]."""
    T, N, H = x_TNH.shape
    return x_TNH.reshape(T, num_kv_heads, N // num_kv_heads, H).transpose(1, 2, 0, 3)


def _by_time(x_KGTH: jax.Array) -> jax.Array:
    """[K, G, T, H] → [T, N, H]."""
    K, G, T, H = x_KGTH.shape
    return x_KGTH.transpose(2, 0, 1, 3).reshape(T, K * G, H)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(jnp.float32, x.dtype))


def _product(equation: str, left: jax.Array, right: jax.Array) -> jax.Array:
    wide = jnp.promote_types(jnp.float32, left.dtype)
    return jnp.einsum(equation, left, right, preferred_element_type=wide)
