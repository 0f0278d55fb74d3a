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

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import PartitionSpec

from chopjax.models.blocked_attention import blocked_attention
from chopjax.models.mesh import BATCH_AXES, HEAD_AXIS
from chopjax.models.remat import NAME, kept

SPLASH_LANES = 128  # the kernel's blocks are multiples of this many positions
SPLASH_BLOCK = 512


@dataclasses.dataclass(frozen=True)
class Scores:
    """What attention's scores are beside q·k / √H. Static: kernels skip the work that it spares.

    window: a token sees itself and the window - 1 positions before it; None: all before it.
    """

    window: int | None = None


def attend(
    query_BTNH: jax.Array,
    key_BTKH: jax.Array,
    value_BTKH: jax.Array,
    segments_BT: jax.Array | None = None,
    implementation: str = "auto",
    scores: Scores = Scores(),
) -> jax.Array:
    """softmax(q·k / √H)·v over earlier positions of the same segment; [B, T, N, H].

    Scores and softmax are float32 whatever the inputs. segments_BT: int32 or None for one segment.
    """
    window = scores.window
    if window is not None and window >= query_BTNH.shape[1]:
        window = None  # it reaches over every row
    if implementation == "auto":
        implementation = choose(query_BTNH.shape[1], query_BTNH.dtype)
    if implementation == "splash":
        return _splash(query_BTNH, key_BTKH, value_BTKH, segments_BT, window)
    if implementation == "blocked":
        return blocked_attention(query_BTNH, key_BTKH, value_BTKH, segments_BT, window)
    mask = None
    if segments_BT is not None:
        mask = (segments_BT[:, :, None] == segments_BT[:, None, :])[:, None]
    mixed_BTNH = jax.nn.dot_product_attention(
        query_BTNH,
        key_BTKH,
        value_BTKH,
        mask=mask,
        is_causal=True,
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn" if implementation == "cudnn" else "xla",
    )
    # The others keep what they need by themselves.
    return mixed_BTNH if implementation == "cudnn" else kept(mixed_BTNH)


def choose(length: int, dtype: jnp.dtype, backend: str | None = None) -> str:
    """What "auto" means: by backend (default: this one), sequence length and inputs' dtype."""
    half = dtype in (jnp.bfloat16, jnp.float16)
    backend = backend or jax.default_backend()
    if backend == "tpu" and length % SPLASH_LANES == 0:
        return "splash"
    if backend == "gpu" and half:  # cuDNN has no float32 flash attention
        return "cudnn"
    if backend == "cpu" and math.prod(jax.sharding.get_abstract_mesh().shape.values()) == 1:
        return "blocked"  # takes the batch apart, which must lie on one device
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


def splash_block(length: int) -> int:
    """Positions along each side of the tiles that the kernel works off, or leaves out, whole."""
    return SPLASH_BLOCK if length % SPLASH_BLOCK == 0 else SPLASH_LANES


def _splash(
    query_BTNH: jax.Array,
    key_BTKH: jax.Array,
    value_BTKH: jax.Array,
    segments_BT: jax.Array | None,
    window: int | None,
) -> jax.Array:
    one_device = functools.partial(_splash_on_one_device, window=window)
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
    window: int | None,
) -> jax.Array:
    length, num_heads, head_dim = query_BTNH.shape[1:]
    block = splash_block(length)
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
    shape = (length, length)
    one_head: splash.Mask = (
        splash.CausalMask(shape)
        if window is None
        else splash.LocalMask(shape, (window - 1, 0), offset=0)
    )
    mask = splash.MultiHeadMask([one_head] * num_heads)
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
