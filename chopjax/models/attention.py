"""Causal attention: four implementations behind one function.

"xla" runs everywhere, "cudnn" on NVIDIA GPUs (flash attention by cuDNN), "splash" on TPUs (jax's
Pallas kernel, a shard_map over the mesh in force), "blocked" on one processor
(blocked_attention.py). "auto" takes the fastest that can run.

Axes: B batch, T time, S keys, N query heads, K key/value heads, G = N/K, H head size.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import PartitionSpec

from chopjax.models.blocked_attention import blocked_attention
from chopjax.models.remat import NAME, kept

# Mesh axes that hold parts of the batch and of the heads; the names are those of train/mesh.py.
BATCH_AXES = ("slice", "data", "fsdp")
HEAD_AXIS = "tensor"
SPLASH_LANES = 128  # the kernel's blocks are multiples of this many positions
SPLASH_BLOCK = 512
CPU_BLOCK = 64  # queries at a time


def attend(
    query_BTNH: jax.Array,
    key_BTKH: jax.Array,
    value_BTKH: jax.Array,
    segments_BT: jax.Array | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """softmax(q·k / √H)·v over earlier positions of the same segment; [B, T, N, H].

    Scores and softmax are float32 whatever the inputs. segments_BT: int32 or None for one segment.
    """
    if implementation == "auto":
        implementation = choose(query_BTNH.shape[1], query_BTNH.dtype)
    if implementation == "splash":
        return _splash(query_BTNH, key_BTKH, value_BTKH, segments_BT)
    if implementation == "blocked":
        return blocked_attention(query_BTNH, key_BTKH, value_BTKH, segments_BT)
    mask = None
    if segments_BT is not None:
        mask = (segments_BT[:, :, None] == segments_BT[:, None, :])[:, None]
    mixed_BTNH = jax.nn.dot_product_attention(
        query_BTNH,
        key_BTKH,
        value_BTKH,
        mask=mask,
        is_causal=True,
        implementation="cudnn" if implementation == "cudnn" else "xla",
    )
    # The others keep what they need by themselves.
    return mixed_BTNH if implementation == "cudnn" else kept(mixed_BTNH)


Past = tuple[jax.Array, jax.Array, jax.Array]  # key_BSKH, value_BSKH, visible_BS


def attend_visible(
    query_BTNH: jax.Array,
    key_BTKH: jax.Array,
    value_BTKH: jax.Array,
    visible_BTT: jax.Array,
    past: Past | None = None,
) -> jax.Array:
    """softmax(q·k / √H)·v over the positions that a mask shows, and over a past; [B, T, N, H].

    visible_BTT: bool; token t sees token s of its row; always itself, never a later one. past: keys
    and values of S earlier tokens and which of the slots hold one; its B is 1 where all rows share
    it. Scores and softmax are float32.
    """
    B, T = query_BTNH.shape[:2]
    if jax.default_backend() != "cpu" or T == 1:
        return _visible(query_BTNH, key_BTKH, value_BTKH, visible_BTT, past)
    # Row by row, and in blocks of queries with the keys up to their end, the scores stay in the
    # processor's cache and half of them are never computed.
    shared = past is not None and past[0].shape[0] == 1 < B
    whole, rows = (past, None) if shared else (None, past)

    def row(arrays: tuple[Any, ...]) -> jax.Array:
        query, key, value, visible, before = jax.tree.map(lambda x: x[None], arrays)
        before = whole if shared else before
        blocks = []
        for start in range(0, T, CPU_BLOCK):
            queries, keys = slice(start, start + CPU_BLOCK), slice(0, start + CPU_BLOCK)
            seen = visible[:, queries, keys]
            blocks.append(_visible(query[:, queries], key[:, keys], value[:, keys], seen, before))
        return jnp.concatenate(blocks, axis=1)[0]

    return jax.lax.map(row, (query_BTNH, key_BTKH, value_BTKH, visible_BTT, rows))


def _visible(
    query_BTNH: jax.Array,
    key_BSKH: jax.Array,
    value_BSKH: jax.Array,
    visible_BTS: jax.Array,
    past: Past | None,
) -> jax.Array:
    B, T, N, H = query_BTNH.shape
    K = key_BSKH.shape[2]
    # The query heads that share a key head stand beside each other (X = T · G): one product.
    query_BKXH = query_BTNH.reshape(B, T, K, N // K, H).swapaxes(1, 2).reshape(B, K, -1, H)
    parts = [(key_BSKH, value_BSKH, visible_BTS)]
    if past is not None:
        parts.append((past[0], past[1], past[2][:, None]))
    scores = []
    for key_BSKH, _, visible_BTS in parts:
        score_BKXS = _product("BKXH,BSKH->BKXS", query_BKXH, key_BSKH) * H**-0.5
        score_BKTGS = score_BKXS.reshape(B, K, T, N // K, -1)
        scores.append(jnp.where(visible_BTS[:, None, :, None], score_BKTGS, -jnp.inf))
    # A token sees itself, so the maximum is finite.
    tops = [score.max(axis=-1, keepdims=True) for score in scores]
    top_BKTG1 = functools.reduce(jnp.maximum, tops)
    mixed_BKXH = jnp.zeros(query_BKXH.shape, jnp.float32)
    total_BKX1 = jnp.zeros((*query_BKXH.shape[:-1], 1), jnp.float32)
    for score_BKTGS, (_, value_BSKH, _) in zip(scores, parts, strict=True):
        weight_BKTGS = jnp.exp(score_BKTGS - top_BKTG1)
        weight_BKXS = weight_BKTGS.reshape(B, K, T * N // K, -1)
        mixed, total = _weigh(weight_BKXS, value_BSKH)
        mixed_BKXH, total_BKX1 = mixed_BKXH + mixed, total_BKX1 + total
    mixed_BKTGH = (mixed_BKXH / total_BKX1).reshape(B, K, T, N // K, H)
    return mixed_BKTGH.swapaxes(1, 2).reshape(B, T, N, H).astype(query_BTNH.dtype)


def _weigh(weight_BKXS: jax.Array, value_BSKH: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The values' weighted sum, [B, K, X, H], and the sum of the weights, [B, K, X, 1]."""
    if jax.default_backend() != "cpu":
        total_BKX1 = weight_BKXS.sum(axis=-1, keepdims=True)
        weight_BKXS = weight_BKXS.astype(value_BSKH.dtype)
        return _product("BKXS,BSKH->BKXH", weight_BKXS, value_BSKH), total_BKX1
    # A column of ones makes the product sum the weights, which saves a pass over them.
    ones_BSK1 = jnp.ones_like(value_BSKH[..., :1])
    value_BSKH = jnp.concatenate([value_BSKH, ones_BSK1], axis=-1)
    weight_BKXS = weight_BKXS.astype(value_BSKH.dtype)
    mixed_BKXH = _product("BKXS,BSKH->BKXH", weight_BKXS, value_BSKH)
    return mixed_BKXH[..., :-1], mixed_BKXH[..., -1:]


def _product(pattern: str, left: jax.Array, right: jax.Array) -> jax.Array:
    """einsum in float32; a right side of one row serves all rows of the left one."""
    if right.shape[0] == 1:
        pattern, right = pattern.replace(",B", ","), right[0]
    return jnp.einsum(pattern, left, right, preferred_element_type=jnp.float32)


def choose(length: int, dtype: jnp.dtype, backend: str | None = None) -> str:
    """What "auto" means: by backend (default: this one), sequence length and inputs' dtype."""
    half = dtype in (jnp.bfloat16, jnp.float16)
    backend = backend or jax.default_backend()
    if backend == "tpu" and length % SPLASH_LANES == 0:
        return "splash"
    if backend == "gpu" and half:  # cuDNN has no float32 flash attention
        return "cudnn"
    if backend == "cpu" and math.prod(jax.sharding.get_abstract_mesh().shape.values()) == 1:
        return "blocked"  # walks over the batch, which must lie on one device
    return "xla"


def why_not(implementation: str, length: int, dtype: jnp.dtype, backend: str) -> str | None:
    """What keeps an implementation that is asked for by name from running; None for nothing."""
    if implementation == "splash":
        if backend != "tpu":
            return f"splash runs on TPUs, this is a {backend}"
        if length % SPLASH_LANES:
            return f"splash takes multiples of {SPLASH_LANES} positions, not {length}"
    if implementation == "cudnn":
        if backend != "gpu":
            return f"cudnn runs on NVIDIA GPUs, this is a {backend}"
        if dtype not in (jnp.bfloat16, jnp.float16):
            return f"cudnn takes bfloat16, not {jnp.dtype(dtype).name}"
    return None


def _splash(
    query_BTNH: jax.Array,
    key_BTKH: jax.Array,
    value_BTKH: jax.Array,
    segments_BT: jax.Array | None,
) -> jax.Array:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return _splash_on_one_device(query_BTNH, key_BTKH, value_BTKH, segments_BT)
    batch = tuple(axis for axis in BATCH_AXES if axis in mesh.axis_names) or None
    heads = HEAD_AXIS if HEAD_AXIS in mesh.axis_names else None
    spec = PartitionSpec(batch, None, heads, None)
    if key_BTKH.shape[2] % mesh.shape.get(HEAD_AXIS, 1):
        # Too few key/value heads to split: give every shard the heads that its queries need.
        groups = query_BTNH.shape[2] // key_BTKH.shape[2]
        key_BTKH, value_BTKH = (jnp.repeat(x, groups, axis=2) for x in (key_BTKH, value_BTKH))
    if segments_BT is None:
        run = functools.partial(_splash_on_one_device, segments_BT=None)
        return jax.shard_map(
            run, mesh=mesh, in_specs=(spec, spec, spec), out_specs=spec, check_vma=False
        )(query_BTNH, key_BTKH, value_BTKH)
    return jax.shard_map(
        _splash_on_one_device,
        mesh=mesh,
        in_specs=(spec, spec, spec, PartitionSpec(batch, None)),
        out_specs=spec,
        check_vma=False,
    )(query_BTNH, key_BTKH, value_BTKH, segments_BT)


def _splash_on_one_device(
    query_BTNH: jax.Array,
    key_BTKH: jax.Array,
    value_BTKH: jax.Array,
    segments_BT: jax.Array | None,
) -> jax.Array:
    length, num_heads, head_dim = query_BTNH.shape[1:]
    block = SPLASH_BLOCK if length % SPLASH_BLOCK == 0 else SPLASH_LANES
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    mask = splash.MultiHeadMask([splash.CausalMask((length, length))] * num_heads)
    kernel = splash.make_splash_mha(
        mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, residual_checkpoint_name=NAME
    )
    # The kernel takes [heads, time, size] and does not scale the scores.
    query_BNTH = jnp.swapaxes(query_BTNH * head_dim**-0.5, 1, 2)
    key_BKTH, value_BKTH = jnp.swapaxes(key_BTKH, 1, 2), jnp.swapaxes(value_BTKH, 1, 2)
    if segments_BT is None:
        mixed_BNTH = jax.vmap(kernel)(query_BNTH, key_BKTH, value_BKTH)
    else:
        ids = splash.SegmentIds(q=segments_BT, kv=segments_BT)
        mixed_BNTH = jax.vmap(kernel)(query_BNTH, key_BKTH, value_BKTH, ids)
    return jnp.swapaxes(mixed_BNTH, 1, 2).astype(query_BTNH.dtype)
