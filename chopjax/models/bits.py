"""bfloat16 as the bits that it is made of, for what a loop takes out of a stack of all layers or
puts into one.

On processors XLA makes float32 of a whole stack of bfloat16 to take one layer out of it or to put
one in (jax 0.10); of integers it takes the layer alone. Bits have no derivative.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from chopjax.models.mesh import on_processors


def as_bits(tree: Any) -> Any:
    """On processors: every bfloat16 array of a tree as uint16, of which there is none otherwise."""
    if not on_processors():
        return tree
    return _recast(tree, jnp.bfloat16, jnp.uint16)


def of_bits(tree: Any) -> Any:
    """`as_bits`, taken back."""
    return _recast(tree, jnp.uint16, jnp.bfloat16)


def viewed_as_bits(tree: Any) -> Any:
    """`as_bits` of arrays in a processor's memory, which are not copied: within a program it is a
    copy of them (jax 0.10)."""

    def view(x: jax.Array) -> Any:
        if x.dtype != jnp.bfloat16:
            return x
        # Of an array that lies on a boundary of 64 bytes, as jax's do, this is no copy.
        return jax.device_put(np.asarray(x).view(np.uint16))

    return jax.tree.map(view, tree)


def _recast(tree: Any, old: Any, new: Any) -> Any:
    def recast(x: jax.Array) -> jax.Array:
        return jax.lax.bitcast_convert_type(x, new) if x.dtype == old else x

    return jax.tree.map(recast, tree)
