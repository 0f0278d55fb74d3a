"""GPTQ (arXiv 2210.17323): the weights of later inputs make up for the error of every code.

Scales are those of the nearest codes, of the weights as they were: all are known before the first
input's turn comes, and the inputs keep their order.

Axes: I inputs, O outputs, S scales of an output, M inputs of a block.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from chopjax.models.formats import FORMATS, Kind, scales_of
from chopjax.sparsify.compensate import compensated
from chopjax.sparsify.ways import Read, Way


@functools.partial(jax.jit, static_argnames="kind")
def gptq(
    weight_IO: jax.Array, scale_IO: jax.Array, dead_I: jax.Array, factor_II: jax.Array, kind: Kind
) -> jax.Array:
    """What the codes stand for, [I, O] float32. scale_IO: float32, of every weight.

    dead_I: bool, inputs that are always zero. factor_II: of inverse_factor.
    """
    largest = FORMATS[kind].largest

    def scales(weight_MO: jax.Array, diagonal_M: jax.Array, first: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(scale_IO, first, len(weight_MO))

    def nearest(weight_O: jax.Array, scale_O: jax.Array) -> jax.Array:
        code_O = jnp.clip(weight_O / jnp.where(scale_O == 0, 1, scale_O), -largest, largest)
        if kind == "fp8":
            return code_O.astype(jnp.float8_e4m3fn).astype(jnp.float32) * scale_O
        return jnp.round(code_O) * scale_O

    return compensated(weight_IO, dead_I, factor_II, None, scales, nearest)


def way_of(kind: Kind, block: int) -> Way:
    """A matrix becomes what its codes stand for, in its own type. From that and the scales the
    codes are found again: half a step is more than the type rounds away."""

    def change(weight_IO: np.ndarray, read: Read | None, where: str) -> np.ndarray:
        assert read is not None
        scales_OS = scales_of(weight_IO.T, kind, block, weight_IO.dtype).astype(np.float32)
        scale_IO = np.repeat(scales_OS, block or len(weight_IO), axis=1).T
        scale_IO = np.where(weight_IO == 0, np.float32(0), scale_IO)  # so that zeros stay
        made_IO = gptq(jnp.asarray(weight_IO), scale_IO, read.dead_I, read.factor_II, kind)
        return np.asarray(made_IO).astype(weight_IO.dtype)

    return Way(f"gptq {kind}", "products", change)
