"""Dropout's masks, out of a hash that costs next to nothing.

jax.random's threefry is a quarter of a LoRA step on a processor, and a tenth of one on a TPU. The
hash is lowbias32 (C. Wellons, hash-prospector), twice, on a counter and the two words of a key:
seventeen operations a number, which the compiler does where the mask is used, so that no mask lies
in memory. It is not for cryptography.

Axes: B batch, T time.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp


def dropped(x: jax.Array, keys_B: jax.Array, rate: float) -> jax.Array:
    """x [B, T, …] with about the share `rate` of its numbers at zero, the others divided by what is
    left. A row's mask is a function of its key alone, whatever rows stand beside it."""
    shape = x.shape[1:]
    counter = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(1, *shape)
    words = jax.vmap(jax.random.key_data)(keys_B).reshape(-1, 2, *(1 for _ in shape))
    drawn = _hash(_hash(counter ^ words[:, 0]) ^ words[:, 1])
    stays = drawn >= jnp.uint32(round(rate * 2**32))
    return jnp.where(stays, x / jnp.asarray(1 - rate, x.dtype), 0)


def _hash(x: jax.Array) -> jax.Array:
    """lowbias32: uint32 → uint32, one to one."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
