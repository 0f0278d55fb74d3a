"""A kernel with a low-rank addition (LoRA, arXiv 2106.09685): y = W·x + scale · B·A·drop(x).

Axes: B batch, T time, R rank; a kernel's own inputs and outputs.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from chopjax.models.dropout import dropped
from chopjax.models.linear import WeightNode, frozen_product, linear, precision_in_force


class Adapted(struct.PyTreeNode):
    """A weight node (models/linear.py). Under `blocks` every array has the layer axis L first."""

    # An array or another WeightNode. It never moves: no gradient is formed for it. None where a
    # scan brings it (borrowed.py).
    base: Any
    a: jax.Array  # [inputs…, R]
    b: jax.Array  # [R, outputs…]
    keys_B: jax.Array | None  # a random key a row, for dropout; None: nothing is dropped
    scale: float = struct.field(pytree_node=False)
    dropout: float = struct.field(pytree_node=False)
    # Nothing is added where the base is zero. The base is an array, and nothing is dropped.
    masked: bool = struct.field(pytree_node=False, default=False)

    def product(self, x: jax.Array, contracted: int) -> jax.Array:
        """The last `contracted` axes of x [B, T, …] times the kernel, in x's dtype."""
        if self.masked:
            base = jax.lax.stop_gradient(self.base).astype(jnp.float32)
            added = jnp.tensordot(self.a, self.b, 1, precision=precision_in_force()) * self.scale
            return linear(x, base + jnp.where(base == 0, 0, added), contracted)
        if isinstance(self.base, WeightNode):
            y = self.base.product(x, contracted)
        else:
            base = jax.lax.stop_gradient(self.base).astype(x.dtype)
            y = frozen_product(x, base, contracted, precision_in_force())
        if self.keys_B is not None and self.dropout:  # of the adapter's input alone
            x = dropped(x, self.keys_B, self.dropout)
        low_BTR = linear(x, self.a, contracted)
        return y + linear(low_BTR, self.b) * jnp.asarray(self.scale, x.dtype)
