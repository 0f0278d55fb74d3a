"""Flash attention over rows that are prefix trees, forward alone: on TPUs a Pallas kernel, which is
here, on NVIDIA GPUs cuDNN, and where no kernel takes them tiles of XLA's (tree_blocks.py).

A row of the scorer is a tree in preorder: token s is seen by token t exactly if s ≤ t < ends[s]
(chopjax/score/packing.py). splash attention cannot be asked for that: its masks are known when the
program is compiled or T x T numbers, and its segments are equal or not. So this kernel compares
with one number a key, and memory grows with the row's length and not with its square. The softmax
is summed up block by block (FlashAttention-2, arXiv 2307.08691, section 3.1); blocks of which no
query sees a key are left out.

Axes: B batch, T time, S keys, N query heads, K key/value heads, G = N/K, H head size, Q queries of
a block, C keys of a block.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

from chopjax.models.mesh import BATCH_AXES, HEAD_AXIS
from chopjax.models.scores import Scores
from chopjax.models.softmax_parts import HIDDEN
from chopjax.models.tree_blocks import summed_by_cudnn, summed_in_tiles

BLOCKS = (512, 256, 128)  # positions of a block; a row up to the first is one block
LANES = 128
ALWAYS = 2**31 - 1  # an end: every later token sees this one


class LayerPast(NamedTuple):
    """One layer of decoder.Past. B is 1 where all rows share it."""

    key_BSKH: jax.Array
    value_BSKH: jax.Array
    visible_BS: jax.Array  # bool: the slots that hold a token
    positions_BS: jax.Array


class Tree(NamedTuple):
    """What the tokens of a row see of each other: token t sees token s if s ≤ t < ends[s].

    ends_BT: int32, B may be 1; None: every token sees all before it.
    """

    ends_BT: jax.Array | None = None

    def visible(self, length: int) -> jax.Array:
        """The same as a mask: bool, [B, T, T]."""
        slots_T = jnp.arange(length)
        causal_TT = slots_T <= slots_T[:, None]
        if self.ends_BT is None:
            return causal_TT[None]
        return causal_TT & (slots_T[:, None] < self.ends_BT[:, None])


class Tiles(NamedTuple):
    """What windows and ALiBi read. positions_BT: B may be 1. window: int32 without axes, of one
    layer; None where no layer has one."""

    positions_BT: jax.Array
    window: jax.Array | None


class Summed(NamedTuple):
    """A softmax over some of the keys, and what it was divided by.

    log_total_BTN: float32, the logarithm of the sum of exponentials; about HIDDEN where no key is
        visible.
    """

    mixed_BTNH: jax.Array
    log_total_BTN: jax.Array


def why_not_tree(length: int, past: int, scores: Scores, windows: bool, backend: str) -> str | None:
    """What keeps the TPU's kernel from running on rows of this length behind so long a past; None
    for nothing."""
    if backend != "tpu":
        return f"the tree kernel runs on TPUs, this is a {backend}"
    if windows or scores.window is not None:
        return "the tree kernel has no windows"
    if scores.slopes is not None:
        return "the tree kernel has no ALiBi"
    for size in (length, past):
        if size and _block(size) is None:
            return f"the tree kernel takes up to {BLOCKS[0]} positions or multiples of {LANES}"
    return None


def attend_tree(
    query_BTNH: jax.Array,
    key_BTKH: jax.Array,
    value_BTKH: jax.Array,
    tree: Tree,
    past: LayerPast | None,
    scores: Scores,
    tiles: Tiles | None = None,
) -> jax.Array:
    """softmax(scores)·v over what a tree shows, and over a past; [B, T, N, H].

    tiles: XLA computes it and no kernel.
    """
    B, T = query_BTNH.shape[:2]

    def over(
        key: jax.Array, value: jax.Array, ends: jax.Array, places: Any, before: int, dtype: Any
    ) -> Summed:
        arguments = query_BTNH, key, value, ends, scores, before, dtype
        if tiles is None:
            return tree_attention(*arguments)
        near = tiles.positions_BT, places, tiles.window
        return Summed(*summed_in_tiles(*arguments, *near))

    ends_BT = jnp.broadcast_to(ALWAYS if tree.ends_BT is None else tree.ends_BT, (B, T))
    own = key_BTKH, value_BTKH, ends_BT, tiles and tiles.positions_BT
    if past is None:
        return over(*own, 0, query_BTNH.dtype).mixed_BTNH
    ends_BS = jnp.where(past.visible_BS, ALWAYS, 0)
    seen = past.key_BSKH, past.value_BSKH, ends_BS, past.positions_BS
    both = over(*own, 0, jnp.float32), over(*seen, ends_BS.shape[1], jnp.float32)
    return joined(*both).astype(query_BTNH.dtype)


def tree_attention(
    query_BTNH: jax.Array,
    key_BSKH: jax.Array,
    value_BSKH: jax.Array,
    ends_BS: jax.Array,
    scores: Scores,
    before: int,
    dtype: Any,
) -> Summed:
    """softmax(scores)·v of the tokens from number `before` on over keys 0 … S - 1: token t sees key
    s if s ≤ t < ends[s].

    Of keys, B may be 1: all rows share them. ends_BS: int32. dtype: of the mixed values. Under a
    mesh, rows and heads are spread over it.
    """
    kernel = summed_by_cudnn if jax.default_backend() == "gpu" else _on_one_device
    run = functools.partial(kernel, scores=scores, before=before, dtype=dtype)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return Summed(*run(query_BTNH, key_BSKH, value_BSKH, ends_BS))
    heads = HEAD_AXIS if HEAD_AXIS in mesh.axis_names else None
    if key_BSKH.shape[2] % mesh.shape.get(HEAD_AXIS, 1):
        groups = query_BTNH.shape[2] // key_BSKH.shape[2]
        key_BSKH, value_BSKH = (jnp.repeat(x, groups, axis=2) for x in (key_BSKH, value_BSKH))
    axes = tuple(axis for axis in BATCH_AXES if axis in mesh.axis_names)
    shards = math.prod(mesh.shape[axis] for axis in axes)

    def rows(array: jax.Array) -> tuple[str, ...] | None:
        return axes if array.shape[0] % shards == 0 else None  # one row is everybody's

    of_query = PartitionSpec(rows(query_BTNH), None, heads, None)
    of_key = PartitionSpec(rows(key_BSKH), None, heads, None)
    return Summed(
        *jax.shard_map(
            run,
            mesh=mesh,
            in_specs=(of_query, of_key, of_key, PartitionSpec(rows(ends_BS), None)),
            out_specs=(of_query, PartitionSpec(rows(query_BTNH), None, heads)),
            check_vma=False,
        )(query_BTNH, key_BSKH, value_BSKH, ends_BS)
    )


def joined(one: Summed, other: Summed) -> jax.Array:
    """The softmax over the keys of both (arXiv 2205.14135, section 3.1): [B, T, N, H], float32."""
    total_BTN = jnp.logaddexp(one.log_total_BTN, other.log_total_BTN)

    def share(part: Summed) -> jax.Array:
        return part.mixed_BTNH * jnp.exp(part.log_total_BTN - total_BTN)[..., None]

    return share(one) + share(other)


def _block(size: int) -> int | None:
    if size <= BLOCKS[0]:
        return size
    return next((block for block in BLOCKS if size % block == 0), None)


def _on_one_device(
    query_BTNH: jax.Array,
    key_BSKH: jax.Array,
    value_BSKH: jax.Array,
    ends_BS: jax.Array,
    scores: Scores,
    before: int,
    dtype: Any,
) -> tuple[jax.Array, jax.Array]:
    whole = query_BTNH.shape[:3]
    if len(key_BSKH) == 1 and _block(whole[0] * whole[1]) is not None:
        # The rows' queries stand beside each other: every key is fetched for many of them.
        query_BTNH = query_BTNH.reshape(1, -1, *query_BTNH.shape[2:])
    B, T, N, H = query_BTNH.shape
    S, G = key_BSKH.shape[1], N // key_BSKH.shape[2]
    Q, C = _block(T), _block(S)
    assert Q is not None
    assert C is not None
    # The last slot that sees a key of a block: a block of later queries need not look at it.
    last_BC = ends_BS.reshape(-1, S // C, C).max(axis=-1)
    of_query = pl.BlockSpec((1, 1, Q, H), lambda b, n, q, c, last: (b, n, q, 0))
    own = len(ends_BS) > 1  # keys of each row
    of_key = pl.BlockSpec(
        (1, 1, C, H), lambda b, n, q, c, last: (b if own else 0, jax.lax.div(n, G), c, 0)
    )
    of_ends = pl.BlockSpec((1, 1, C), lambda b, n, q, c, last: (b if own else 0, 0, c))
    of_totals = pl.BlockSpec((1, 1, 1, Q), lambda b, n, q, c, last: (b, n, 0, q))
    mixed_BNTH, log_total_BN1T = pl.pallas_call(
        functools.partial(
            _kernel, scale=scores.scale_of(H), cap=scores.cap, before=before, own=own
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(B, N, T // Q, S // C),
            in_specs=[of_query, of_key, of_key, of_ends],
            out_specs=[of_query, of_totals],
            scratch_shapes=[
                pltpu.VMEM((Q, LANES), jnp.float32),
                pltpu.VMEM((Q, LANES), jnp.float32),
                pltpu.VMEM((Q, H), jnp.float32),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((B, N, T, H), dtype),
            jax.ShapeDtypeStruct((B, N, 1, T), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")
        ),
        name="tree_attention",
    )(
        last_BC,
        *(jnp.swapaxes(x, 1, 2) for x in (query_BTNH, key_BSKH, value_BSKH)),
        ends_BS[:, None],
    )
    mixed_BTNH = jnp.swapaxes(mixed_BNTH, 1, 2).reshape(*whole, H)
    log_total_BTN = jnp.swapaxes(log_total_BN1T[:, :, 0], 1, 2).reshape(whole)
    return mixed_BTNH, log_total_BTN


def _kernel(
    last_BC: Any,
    query_QH: Any,
    key_CH: Any,
    value_CH: Any,
    ends_1C: Any,
    mixed_QH: Any,
    log_total_1Q: Any,
    top_Q1: Any,
    total_Q1: Any,
    sum_QH: Any,
    *,
    scale: float,
    cap: float | None,
    before: int,
    own: bool,
) -> None:
    """One block of queries and one of keys; the keys' blocks come one after the other. The scratch
    numbers of a query stand in every lane."""
    row, block, step = pl.program_id(0) if own else 0, pl.program_id(2), pl.program_id(3)
    Q, C = query_QH.shape[2], key_CH.shape[2]
    first_query, first_key = before + block * Q, step * C

    @pl.when(step == 0)
    def _() -> None:
        top_Q1[...] = jnp.full_like(top_Q1, HIDDEN)
        total_Q1[...] = jnp.zeros_like(total_Q1)
        sum_QH[...] = jnp.zeros_like(sum_QH)

    @pl.when((first_key < first_query + Q) & (last_BC[row, step] > first_query))
    def _() -> None:
        score_QC = scale * jax.lax.dot_general(
            query_QH[0, 0],
            key_CH[0, 0],
            (((1,), (1,)), ((), ())),
            preferred_element_type=jnp.float32,
        )
        if cap is not None:
            score_QC = cap * jnp.tanh(score_QC / cap)
        query = first_query + jax.lax.broadcasted_iota(jnp.int32, (Q, C), 0)
        key = first_key + jax.lax.broadcasted_iota(jnp.int32, (Q, C), 1)
        score_QC = jnp.where((key <= query) & (query < ends_1C[0]), score_QC, HIDDEN)
        before_Q1 = top_Q1[:, :1]
        new_Q1 = jnp.maximum(before_Q1, score_QC.max(axis=1, keepdims=True))
        weight_QC = jnp.exp(score_QC - new_Q1)
        scale_Q1 = jnp.exp(before_Q1 - new_Q1)
        added_Q1 = scale_Q1 * total_Q1[:, :1] + weight_QC.sum(axis=1, keepdims=True)
        mixed = jnp.dot(
            weight_QC.astype(value_CH.dtype), value_CH[0, 0], preferred_element_type=jnp.float32
        )
        sum_QH[...] = scale_Q1 * sum_QH[...] + mixed
        top_Q1[...] = jnp.broadcast_to(new_Q1, top_Q1.shape)
        total_Q1[...] = jnp.broadcast_to(added_Q1, total_Q1.shape)

    @pl.when(step == pl.num_programs(3) - 1)
    def _() -> None:
        # No block was looked at: nothing is visible.
        total = jnp.where(total_Q1[...] == 0, 1.0, total_Q1[...])
        mixed_QH[0, 0] = (sum_QH[...] / total[:, :1]).astype(mixed_QH.dtype)
        log_total_1Q[0, 0] = (top_Q1[...] + jnp.log(total)).T[:1]
