"""Causal attention: four implementations behind one function.

"xla" runs everywhere, "cudnn" on NVIDIA GPUs (flash attention by cuDNN), "splash" on TPUs (jax's
Pallas kernel, a shard_map over the mesh in force), "blocked" on one processor
(blocked_attention.py). "auto" takes the fastest that can run.

Axes: B batch, T time, S keys, N query heads, K key/value heads, G = N/K, H head size.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from chopjax.models.blocked_attention import blocked_attention
from chopjax.models.mesh import BATCH_AXES, HEAD_AXIS
from chopjax.models.remat import NAME, kept
from chopjax.models.scores import PLAIN, Scores, shaped

SPLASH_LANES = 128  # the kernel's blocks are multiples of this many positions
SPLASH_BLOCK = 512
FUSED_TILES = 8  # of keys, at most, where one kernel makes all three gradients
OWN = {"tpu": "splash", "gpu": "cudnn", "cpu": "blocked"}  # by backend
CUDNN_HEAD = 128  # a head's most dimensions, in steps of 8; CUDNN_HOPPER_HEAD from Hopper on
CUDNN_HOPPER_HEAD = 256


def attend(
    query_BTNH: jax.Array,
    key_BTKH: jax.Array,
    value_BTKH: jax.Array,
    segments_BT: jax.Array | None = None,
    implementation: str = "auto",
    scores: Scores = PLAIN,
) -> jax.Array:
    """softmax(scores)·v over earlier positions of the same segment; [B, T, N, H].

    Scores and softmax are float32 whatever the inputs. segments_BT: int32 or None for one segment.
    """
    length, head_dim = query_BTNH.shape[1], query_BTNH.shape[-1]
    if implementation == "auto":
        implementation, _ = choose(length, query_BTNH.dtype, head_dim, [scores])
    if scores.window is not None and scores.window >= length:
        scores = dataclasses.replace(scores, window=None)  # it reaches over every row
    if implementation == "splash":
        return _splash(query_BTNH, key_BTKH, value_BTKH, segments_BT, scores)
    if implementation == "blocked":
        return blocked_attention(query_BTNH, key_BTKH, value_BTKH, segments_BT, scores)
    mask_B1TT = None
    if segments_BT is not None:
        mask_B1TT = (segments_BT[:, :, None] == segments_BT[:, None, :])[:, None]
    if scores.cap is not None:
        return kept(_capped(query_BTNH, key_BTKH, value_BTKH, mask_B1TT, scores))
    bias_1N1T = None
    if scores.slopes is not None:
        # By the key's position alone: a softmax does not change with what its scores share.
        slopes_N = jnp.asarray(scores.slopes, jnp.float32)
        bias_1N1T = (slopes_N[:, None] * jnp.arange(1 - length, 1))[None, :, None]
    mixed_BTNH = jax.nn.dot_product_attention(
        query_BTNH,
        key_BTKH,
        value_BTKH,
        bias=bias_1N1T,
        mask=mask_B1TT,
        scale=scores.scale_of(head_dim),
        is_causal=True,
        local_window_size=None if scores.window is None else (scores.window - 1, 0),
        implementation="cudnn" if implementation == "cudnn" else "xla",
    )
    # The others keep what they need by themselves.
    return mixed_BTNH if implementation == "cudnn" else kept(mixed_BTNH)


def before_keeping(
    query_BTNH: jax.Array, implementation: str, several: Sequence[Scores]
) -> tuple[jax.Array, Sequence[Scores]]:
    """Queries as the implementation takes them, and the scores that are left to make of them.

    splash does not scale. Its queries are scaled where they are made, before a backward pass keeps
    them: later it would be one more way through memory, in both passes. several: of all layers;
    their scale is one.
    """
    length, head_dim = query_BTNH.shape[1], query_BTNH.shape[-1]
    if implementation == "auto":
        implementation, _ = choose(length, query_BTNH.dtype, head_dim, several)
    if implementation != "splash":
        return query_BTNH, several
    scaled_BTNH = query_BTNH * several[0].scale_of(head_dim)
    return scaled_BTNH, [dataclasses.replace(scores, scale=1.0) for scores in several]


def _capped(
    query_BTNH: jax.Array,
    key_BTKH: jax.Array,
    value_BTKH: jax.Array,
    mask_B1TT: jax.Array | None,
    scores: Scores,
) -> jax.Array:
    """What jax's own function has no argument for."""
    B, T, N, H = query_BTNH.shape
    K = key_BTKH.shape[2]
    query_BTKGH = query_BTNH.reshape(B, T, K, N // K, H)
    product_BKGTS = scores.scale_of(H) * jnp.einsum(
        "BTKGH,BSKH->BKGTS", query_BTKGH, key_BTKH, preferred_element_type=jnp.float32
    )
    distance_TS = jnp.arange(T)[:, None] - jnp.arange(T)
    visible_TS = distance_TS >= 0
    if scores.window is not None:
        visible_TS &= distance_TS < scores.window
    visible_BKGTS = visible_TS if mask_B1TT is None else (mask_B1TT & visible_TS)[:, :, None]
    score_BKGTS = shaped(product_BKGTS, Scores(cap=scores.cap), None)
    score_BKGTS = jnp.where(visible_BKGTS, score_BKGTS, -jnp.inf)
    weight_BKGTS = jax.nn.softmax(score_BKGTS, axis=-1).astype(value_BTKH.dtype)
    return jnp.einsum("BKGTS,BSKH->BTKGH", weight_BKGTS, value_BTKH).reshape(B, T, N, H)


def choose(
    length: int,
    dtype: jnp.dtype,
    head_dim: int,
    scores: Sequence[Scores],
    backend: str | None = None,
) -> tuple[str, str | None]:
    """What "auto" means: the backend's own implementation where it can run, else "xla", and why.

    backend: default: this one. scores: of all layers.
    """
    backend = backend or jax.default_backend()
    own = OWN.get(backend, "xla")
    reason = why_not(own, length, dtype, head_dim, scores, backend)
    return ("xla" if reason else own), reason


def why_not(
    implementation: str,
    length: int,
    dtype: jnp.dtype,
    head_dim: int,
    scores: Sequence[Scores],
    backend: str,
) -> str | None:
    """What keeps an implementation from running on this; None for nothing."""
    alibi = any(each.slopes is not None for each in scores)
    capped = any(each.cap is not None for each in scores)
    if implementation == "splash":
        if backend != "tpu":
            return f"splash runs on TPUs, this is a {backend}"
        if length % SPLASH_LANES:
            return f"splash takes multiples of {SPLASH_LANES} positions, not {length}"
        if alibi:
            return "splash has no ALiBi"
    if implementation == "cudnn":
        if backend != "gpu":
            return f"cudnn runs on NVIDIA GPUs, this is a {backend}"
        if dtype not in (jnp.bfloat16, jnp.float16):
            return f"cudnn takes bfloat16, not {jnp.dtype(dtype).name}"
        if alibi:
            return "cudnn has no ALiBi but as T x T numbers in memory"
        if capped:
            return "cudnn has no capped scores"
        if head_dim % 8 or head_dim > (most := _cudnn_head(backend)):
            return f"cudnn takes heads of 8, 16, … {most} dimensions here, not {head_dim}"
    if implementation == "blocked" and _devices_in_mesh() > 1:
        return "blocked takes the batch apart, which must lie on one device"
    return None


def _cudnn_head(backend: str) -> int:
    """A head's most dimensions on this machine's GPU; without one, for a plan, on Hopper."""
    if backend != jax.default_backend():
        return CUDNN_HOPPER_HEAD
    capability = getattr(jax.devices()[0], "compute_capability", "0")
    return CUDNN_HOPPER_HEAD if float(capability) >= 9 else CUDNN_HEAD


def _devices_in_mesh() -> int:
    return math.prod(jax.sharding.get_abstract_mesh().shape.values())


def splash_block(length: int) -> int:
    """Positions along each side of the tiles that the kernel works off, or leaves out, whole."""
    return SPLASH_BLOCK if length % SPLASH_BLOCK == 0 else SPLASH_LANES


def splash_is_fused(length: int) -> bool:
    """Whether one kernel makes all three gradients, and computes the scores once less for it. It
    writes the queries' gradient once for each tile of keys, which is too much for long rows."""
    return length // splash_block(length) <= FUSED_TILES


def _splash(
    query_BTNH: jax.Array,
    key_BTKH: jax.Array,
    value_BTKH: jax.Array,
    segments_BT: jax.Array | None,
    scores: Scores,
) -> jax.Array:
    one_device = functools.partial(_splash_on_one_device, scores=scores)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return one_device(query_BTNH, key_BTKH, value_BTKH, segments_BT)
    batch = tuple(axis for axis in BATCH_AXES if axis in mesh.axis_names) or None
    heads = HEAD_AXIS if HEAD_AXIS in mesh.axis_names else None
    spec = PartitionSpec(batch, None, heads, None)
    if key_BTKH.shape[2] % mesh.shape.get(HEAD_AXIS, 1):
        # Too few key/value heads to split: give every shard the heads that its queries need.
        groups = query_BTNH.shape[2] // key_BTKH.shape[2]
        key_BTKH, value_BTKH = (jnp.repeat(x, groups, axis=2) for x in (key_BTKH, value_BTKH))
    if segments_BT is None:
        run = functools.partial(one_device, segments_BT=None)
        return jax.shard_map(
            run, mesh=mesh, in_specs=(spec, spec, spec), out_specs=spec, check_vma=False
        )(query_BTNH, key_BTKH, value_BTKH)
    return jax.shard_map(
        one_device,
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
    scores: Scores,
) -> jax.Array:
    # A tenth of the time in which a command's imports are done, and for TPUs alone.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    length, num_heads, head_dim = query_BTNH.shape[1:]
    block = splash_block(length)
    fused = splash_is_fused(length)
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=None if fused else block,
        block_kv_dq=None if fused else block,
        use_fused_bwd_kernel=fused,
    )
    shape = (length, length)
    one_head: splash.Mask = (
        splash.CausalMask(shape)
        if scores.window is None
        else splash.LocalMask(shape, (scores.window - 1, 0), offset=0)
    )
    mask = splash.MultiHeadMask([one_head] * num_heads)
    kernel = splash.make_splash_mha(
        mask,
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=NAME,
        attn_logits_soft_cap=scores.cap,
    )
    # The kernel takes [heads, time, size] and does not scale the scores.
    query_BNTH = jnp.swapaxes(query_BTNH * scores.scale_of(head_dim), 1, 2)
    key_BKTH, value_BKTH = jnp.swapaxes(key_BTKH, 1, 2), jnp.swapaxes(value_BTKH, 1, 2)
    if segments_BT is None:
        mixed_BNTH = jax.vmap(kernel)(query_BNTH, key_BKTH, value_BKTH)
    else:
        ids = splash.SegmentIds(q=segments_BT, kv=segments_BT)
        mixed_BNTH = jax.vmap(kernel)(query_BNTH, key_BKTH, value_BKTH, ids)
    return jnp.swapaxes(mixed_BNTH, 1, 2).astype(query_BTNH.dtype)
