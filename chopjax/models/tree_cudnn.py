"""Flash attention over rows that are prefix trees, for NVIDIA GPUs: cuDNN's, forward alone.

To cuDNN a tree is a bias, a number for each query and key: its own masks are causal or of a length,
and its packed segments do not nest. So the queries go in blocks, each over the keys up to its end,
and what exists of the bias at a time grows with the row's length and not with its square.

Axes: B batch, T time, S keys, N query heads, K key/value heads, H head size, Q queries of a block,
C keys that a block meets.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from chopjax.models.scores import Scores

BLOCK = 512  # queries of a row


def summed_by_cudnn(
    query_BTNH: jax.Array,
    key_BSKH: jax.Array,
    value_BSKH: jax.Array,
    ends_BS: jax.Array,
    scores: Scores,
    before: int,
    dtype: Any,
) -> tuple[jax.Array, jax.Array]:
    """The two parts of tree_attention.Summed, of the same arguments. T and S are even."""
    B, T, N, H = query_BTNH.shape
    mixed, log_totals = [], []
    for start in range(0, T, BLOCK):
        block_BQNH = query_BTNH[:, start : start + BLOCK]
        stop = start + block_BQNH.shape[1]
        seen = min(ends_BS.shape[1], before + stop)
        query_Q1, key_C = before + jnp.arange(start, stop)[:, None], jnp.arange(seen)
        visible_BQC = (key_C <= query_Q1) & (query_Q1 < ends_BS[:, None, :seen])
        if len(key_BSKH) == 1:
            # The rows' queries stand beside each other over keys that all of them share.
            block_BQNH = block_BQNH.reshape(1, -1, N, H)
            visible_BQC = jnp.tile(visible_BQC, (1, B, 1))
        mixed_BQNH, log_total_BNQ = _attend(
            block_BQNH,
            key_BSKH[:, :seen],
            value_BSKH[:, :seen],
            visible_BQC[:, None],
            scores.scale_of(H),
        )
        mixed.append(mixed_BQNH.reshape(B, -1, N, H).astype(dtype))
        log_totals.append(jnp.swapaxes(log_total_BNQ, 1, 2).reshape(B, -1, N))
    return jnp.concatenate(mixed, axis=1), jnp.concatenate(log_totals, axis=1)


def _attend(
    query_BQNH: jax.Array,
    key_BCKH: jax.Array,
    value_BCKH: jax.Array,
    visible_B1QC: jax.Array,
    scale: float,
) -> tuple[jax.Array, jax.Array]:
    """Mixed values [B, Q, N, H] and, float32 [B, N, Q], the logarithm of the softmax's sum.

    jax.nn.dot_product_attention would round the latter to the values' type, too coarse to join two
    parts by: hence what it calls.
    """
    mixed_BQNH, log_total_BNQ = cudnn.dot_product_attention(
        query_BQNH, key_BCKH, value_BCKH, mask=visible_B1QC, scale=scale, return_residual=True
    )
    return mixed_BQNH, log_total_BNQ
