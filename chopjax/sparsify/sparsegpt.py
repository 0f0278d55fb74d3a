"""SparseGPT (arXiv 2301.00774): what goes is made up for by the weights of later inputs.

Of a group of N:M, or of a block of 128, those weights go whose W²/U² is smallest (compensate.py has
U and the walk).

Axes: I inputs, O outputs, M those of a group.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from chopjax.sparsify.compensate import compensated
from chopjax.sparsify.masks import smallest, smallest_in_groups
from chopjax.sparsify.pattern import Pattern


@functools.partial(jax.jit, static_argnames="pattern")
def sparsegpt(
    weight_IO: jax.Array, dead_I: jax.Array, factor_II: jax.Array, pattern: Pattern
) -> jax.Array:
    """The matrix with its zeros, and the other weights changed: [I, O] float32.

    dead_I: bool, inputs that are always zero. factor_II: of inverse_factor.
    """

    def goes(weight_MO: jax.Array, diagonal_M: jax.Array, first: jax.Array) -> jax.Array:
        score_MO = jnp.square(weight_MO) / jnp.square(diagonal_M)[:, None]
        if pattern.group is None:
            return smallest(score_MO, pattern.count(score_MO.size))
        return smallest_in_groups(score_MO, pattern)

    def settle(weight_O: jax.Array, goes_O: jax.Array) -> jax.Array:
        return jnp.where(goes_O, 0, weight_O)

    return compensated(weight_IO, dead_I, factor_II, pattern.group, goes, settle)
