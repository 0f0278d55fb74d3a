"""Attention over rows that are prefix trees, a block of queries at a time, each over the keys up to
its end: by cuDNN, or by XLA where no kernel does it. Forward alone.

To cuDNN a tree is a bias, a number for each query and key: its own masks are causal or of a length,
and its packed segments do not nest. XLA gets the keys in tiles, too, whose softmaxes are joined one
after the other (FlashAttention, arXiv 2205.14135, section 3.1). Either way what exists at a time
grows with the length of rows and not with its square.

Axes: B batch, T time, S keys, N query heads, K key/value heads, G = N/K, H head size, Q queries of
a block, C keys of a tile, X = Q·G.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from chopjax.models.scores import Scores
from chopjax.models.softmax_parts import Part, join, part_of

BLOCK = 512  # queries of a row, and keys of a tile

Sums = tuple[jax.Array, jax.Array]  # tree_attention.Summed: mixed values, logarithms of totals


def summed_by_cudnn(
    query_BTNH: jax.Array,
    key_BSKH: jax.Array,
    value_BSKH: jax.Array,
    ends_BS: jax.Array,
    scores: Scores,
    before: int,
    dtype: Any,
) -> Sums:
    """What tree_attention.tree_attention returns, of the same arguments. T and S are even."""

    def attend(query_BQNH: jax.Array, number_BQ: jax.Array, seen: int) -> Sums:
        visible_BQC = _visible(number_BQ, jnp.arange(seen), ends_BS[:, :seen])
        scale = scores.scale_of(query_BQNH.shape[-1])
        keys = key_BSKH[:, :seen], value_BSKH[:, :seen]
        return _call_cudnn(query_BQNH, *keys, visible_BQC[:, None], scale)

    return _in_blocks(attend, (query_BTNH,), ends_BS.shape[1], len(key_BSKH), before, dtype)


def summed_in_tiles(
    query_BTNH: jax.Array,
    key_BSKH: jax.Array,
    value_BSKH: jax.Array,
    ends_BS: jax.Array,
    scores: Scores,
    before: int,
    dtype: Any,
    positions_BT: jax.Array,
    positions_BS: jax.Array,
    window: jax.Array | None,
) -> Sums:
    """The same by XLA, with windows and ALiBi, which read the positions (B may be 1).

    window: int32 without axes, None for none.
    """
    S, K = key_BSKH.shape[1:3]

    def attend(
        query_BQNH: jax.Array, position_BQ: jax.Array, number_BQ: jax.Array, seen: int
    ) -> Sums:
        B, Q, N, H = query_BQNH.shape
        query_BQKGH = query_BQNH.reshape(B, Q, K, N // K, H)
        query_BKXH = query_BQKGH.swapaxes(1, 2).reshape(B, K, -1, H)

        def over(first: int | jax.Array, size: int) -> Part:
            def tile(x: jax.Array) -> jax.Array:
                taken: jax.Array = jax.lax.dynamic_slice_in_dim(x, first, size, axis=1)
                return taken

            visible_BQC = _visible(number_BQ, first + jnp.arange(size), tile(ends_BS))
            distance_BQC = position_BQ[:, :, None] - tile(positions_BS)[:, None]
            if window is not None:
                visible_BQC &= distance_BQC < window
            visible_BXC = jnp.repeat(visible_BQC, N // K, axis=1)
            key_BKCH, value_BKCH = (tile(x).swapaxes(1, 2) for x in (key_BSKH, value_BSKH))
            slopes = None if scores.slopes is None else distance_BQC
            return part_of(query_BKXH, key_BKCH, value_BKCH, visible_BXC[:, None], slopes, scores)

        last = (seen - 1) // BLOCK * BLOCK
        part = over(last, seen - last)
        if last:
            part = jax.lax.fori_loop(
                0,
                last // BLOCK,
                lambda number, so_far: join(so_far, over(number * BLOCK, BLOCK)),
                part,
            )

        def by_query(x_BKXI: jax.Array) -> jax.Array:
            x_BKQGI = x_BKXI.reshape(B, K, Q, N // K, -1)
            return x_BKQGI.swapaxes(1, 2).reshape(B, Q, N, -1)

        log_total_BKX1 = part.top_BKX1 + jnp.log(part.total_BKX1)
        mixed_BQNH = by_query(part.mixed_BKXH / part.total_BKX1)
        return mixed_BQNH, by_query(log_total_BKX1)[..., 0]

    positions_BT = jnp.broadcast_to(positions_BT, query_BTNH.shape[:2])
    of_query = query_BTNH, positions_BT
    return _in_blocks(attend, of_query, S, len(key_BSKH), before, dtype)


def _in_blocks(
    attend: Callable[..., Sums],
    of_query: tuple[jax.Array, ...],
    length: int,
    key_rows: int,
    before: int,
    dtype: Any,
) -> Sums:
    """attend: of_query of a block, the numbers of its tokens and of how many keys they see any."""
    B, T, N, H = of_query[0].shape
    number_BT = jnp.broadcast_to(before + jnp.arange(T), (B, T))
    mixed, log_totals = [], []
    for start in range(0, T, BLOCK):
        taken = [x[:, start : start + BLOCK] for x in (*of_query, number_BT)]
        if key_rows == 1:
            # The rows' queries stand beside each other over keys that all of them share.
            taken = [x.reshape(1, -1, *x.shape[2:]) for x in taken]
        seen = min(length, before + start + BLOCK)
        mixed_BQNH, log_total_BQN = attend(*taken, seen)
        mixed.append(mixed_BQNH.reshape(B, -1, N, H).astype(dtype))
        log_totals.append(log_total_BQN.reshape(B, -1, N))
    return jnp.concatenate(mixed, axis=1), jnp.concatenate(log_totals, axis=1)


def _visible(number_BQ: jax.Array, key_C: jax.Array, ends_BC: jax.Array) -> jax.Array:
    """bool, [B, Q, C]."""
    number_BQ1 = number_BQ[..., None]
    return (key_C <= number_BQ1) & (number_BQ1 < ends_BC[:, None])


def _call_cudnn(
    query_BQNH: jax.Array,
    key_BCKH: jax.Array,
    value_BCKH: jax.Array,
    visible_B1QC: jax.Array,
    scale: float,
) -> Sums:
    """Mixed values and float32 logarithms.

    jax.nn.dot_product_attention would round the latter to the values' type, too coarse to join two
    parts by: hence what it calls.
    """
    mixed_BQNH, log_total_BNQ = cudnn.dot_product_attention(
        query_BQNH, key_BCKH, value_BCKH, mask=visible_B1QC, scale=scale, return_residual=True
    )
    return mixed_BQNH, jnp.swapaxes(log_total_BNQ, 1, 2)
