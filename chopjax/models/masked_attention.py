"""Attention over an explicit mask and over a past: what scoring and generation run on.

Where the mask is that of a tree, or of plain text, an accelerator takes it by a kernel or in tiles
(`choose_masked`). The rest of this file is for all other masks, and for processors.

Every part (the tokens' own row, the past) gives a maximum, a sum of weights and a weighted sum of
values; they are joined as in FlashAttention (arXiv 2205.14135, section 3.1). On processors the
rows go in groups and their queries in blocks, so that scores stay in the cache and half of them
are never computed; a past that all rows share meets the queries of a whole group in one product.

Axes: B batch, T time, S keys, N query heads, K key/value heads, G = N/K, H head size, X = T·G.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from chopjax.models.attention import why_not
from chopjax.models.groups import in_groups
from chopjax.models.scores import PLAIN, Scores
from chopjax.models.softmax_parts import Part, join, part_of
from chopjax.models.tree_attention import LayerPast, Tree, why_not_tree

CPU_GROUP = 1024  # tokens of a group of rows, fewer before a long past
CPU_SCORES = 1 << 22  # of a group over a past
CPU_BLOCK = 64  # queries of a row at a time; more where a row would have more than MOST_BLOCKS
MOST_BLOCKS = 16  # every one is compiled by itself
BLOCK = 512  # of an accelerator; above the diagonal, blocks are not computed


class _Near(NamedTuple):
    """Where keys stand as the queries see it; what nothing reads is None."""

    within_BTS: jax.Array | None = None  # bool: the window reaches there
    distance_BTS: jax.Array | None = None


def choose_masked(
    tree: Tree | None,
    length: int,
    past: int,
    dtype: Any,
    head_dim: int,
    scores: Scores,
    windows: bool,
) -> tuple[str, str | None]:
    """What attends best on this backend: "tree" (a kernel of tree_attention.py), "tiles" (what
    XLA makes of the same), "cudnn" (attention.py) or "plain" (attend_visible); and why it is no
    kernel on an accelerator.

    tree: None where a mask says what is visible. past: slots before the row, 0 for none. windows:
    whether any layer has one.
    """
    backend = jax.default_backend()
    if backend == "cpu" or length == 1:
        return "plain", None
    if tree is None:
        return "plain", "the mask is not that of a tree"
    if backend == "tpu":
        kernel, reason = "tree", why_not_tree(length, past, scores, windows, backend)
    else:
        masked = tree.ends_BT is not None or past > 0
        kernel = "tree" if masked else "cudnn"
        reason = "cudnn has no windows that are data" if windows else None
        reason = reason or why_not("cudnn", length, dtype, head_dim, [scores], backend)
        if masked and (length % 2 or past % 2):
            reason = reason or "cudnn takes a mask over even numbers of positions"
    return ("tiles" if reason else kernel), reason


def attend_visible(
    query_BTNH: jax.Array,
    key_BTKH: jax.Array,
    value_BTKH: jax.Array,
    visible_BTT: jax.Array,
    positions_BT: jax.Array,
    past: LayerPast | None = None,
    scores: Scores = PLAIN,
    window: jax.Array | None = None,
) -> jax.Array:
    """softmax(scores)·v over the positions that a mask shows, and over a past; [B, T, N, H].

    visible_BTT: bool; token t sees token s of its row; always itself, never a later one.
    positions_BT: int32, B may be 1; windows and ALiBi read them. past: keys and values of S earlier
    tokens. window: int32 without axes, None where no layer has one: it may differ from layer to
    layer of one program, so that scores.window is not read. Scores and softmax are float32.
    """
    B, T, N = query_BTNH.shape[:3]
    near = past_near = _Near()
    if scores.slopes is not None or window is not None:
        positions_BT = jnp.broadcast_to(positions_BT, (B, T))
        near = _near(positions_BT, positions_BT, window, scores)
        if past is not None:
            past_near = _near(positions_BT, past.positions_BS, window, scores)
    if near.within_BTS is not None:
        visible_BTT &= near.within_BTS
        near = near._replace(within_BTS=None)
    if jax.default_backend() != "cpu" or T == 1:
        whole = (query_BTNH, key_BTKH, value_BTKH, visible_BTT, near, past, past_near)
        return _attend(*whole, block=max(BLOCK, -(-T // MOST_BLOCKS)), scores=scores)
    block = max(CPU_BLOCK, -(-T // MOST_BLOCKS))
    tokens = CPU_GROUP
    if past is not None:
        tokens = min(tokens, CPU_SCORES // (N * past.key_BSKH.shape[1]))
    shared = past is not None and past.key_BSKH.shape[0] == 1

    def group(arrays: tuple[Any, ...]) -> jax.Array:
        query, key, value, visible, around, before, behind = arrays
        seen = past if shared else before
        return _attend(query, key, value, visible, around, seen, behind, block=block, scores=scores)

    own = None if shared else past
    arrays = (query_BTNH, key_BTKH, value_BTKH, visible_BTT, near, own, past_near)
    mixed_BTNH: jax.Array = in_groups(group, arrays, tokens // T, T)
    return mixed_BTNH


def _near(
    positions_BT: jax.Array, positions_BS: jax.Array, window: jax.Array | None, scores: Scores
) -> _Near:
    distance_BTS = positions_BT[:, :, None] - positions_BS[:, None, :]
    within_BTS = None if window is None else distance_BTS < window
    return _Near(within_BTS, None if scores.slopes is None else distance_BTS)


def _attend(
    query_BTNH: jax.Array,
    key_BTKH: jax.Array,
    value_BTKH: jax.Array,
    visible_BTT: jax.Array,
    near: _Near,
    past: LayerPast | None,
    past_near: _Near,
    *,
    block: int,
    scores: Scores,
) -> jax.Array:
    B, T, N, H = query_BTNH.shape
    K = key_BTKH.shape[2]
    G = N // K
    # The query heads that share a key head stand beside each other: one product.
    query_BKXH = query_BTNH.reshape(B, T, K, G, H).swapaxes(1, 2).reshape(B, K, -1, H)
    key_BKSH, value_BKSH = key_BTKH.swapaxes(1, 2), value_BTKH.swapaxes(1, 2)
    blocks = []
    for start in range(0, T, block):
        end = min(start + block, T)
        seen_BXS = jnp.repeat(visible_BTT[:, start:end, :end], G, axis=1)
        parts = (
            query_BKXH[:, :, start * G : end * G],
            key_BKSH[:, :, :end],
            value_BKSH[:, :, :end],
        )
        away_BQS = None if near.distance_BTS is None else near.distance_BTS[:, start:end, :end]
        blocks.append(part_of(*parts, seen_BXS[:, None], away_BQS, scores))
    part = jax.tree.map(lambda *x: x[0] if len(x) == 1 else jnp.concatenate(x, axis=2), *blocks)
    if past is not None:
        part = join(part, _over_past(query_BKXH, past, past_near, scores))
    mixed_BKTGH = (part.mixed_BKXH / part.total_BKX1).reshape(B, K, T, G, H)
    mixed_BTNH: jax.Array = mixed_BKTGH.swapaxes(1, 2).reshape(B, T, N, H).astype(query_BTNH.dtype)
    return mixed_BTNH


def _over_past(query_BKXH: jax.Array, past: LayerPast, near: _Near, scores: Scores) -> Part:
    key_BKSH, value_BKSH = past.key_BSKH.swapaxes(1, 2), past.value_BSKH.swapaxes(1, 2)
    B, K, X, H = query_BKXH.shape
    seen_BTS = past.visible_BS[:, None]  # each slot that holds a token
    if near.within_BTS is not None:
        seen_BTS &= near.within_BTS
    visible_BKXS = seen_BTS[:, None]
    if seen_BTS.shape[1] > 1:
        visible_BKXS = jnp.repeat(seen_BTS, X // seen_BTS.shape[1], axis=1)[:, None]
    if key_BKSH.shape[0] == B:
        return part_of(query_BKXH, key_BKSH, value_BKSH, visible_BKXS, near.distance_BTS, scores)
    # One past for all rows: their queries stand beside each other, too.
    query_1KXH = query_BKXH.swapaxes(0, 1).reshape(1, K, B * X, H)
    S = key_BKSH.shape[2]
    if near.within_BTS is not None:
        visible_BKXS = jnp.broadcast_to(visible_BKXS, (B, 1, X, S)).reshape(1, 1, B * X, S)
    distance_1QS = None
    if near.distance_BTS is not None:
        distance_1QS = near.distance_BTS.reshape(1, -1, S)
    part = part_of(query_1KXH, key_BKSH, value_BKSH, visible_BKXS, distance_1QS, scores)
    by_row: Part = jax.tree.map(lambda x: x.reshape(K, B, X, -1).swapaxes(0, 1), part)
    return by_row
