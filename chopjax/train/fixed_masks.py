"""Zeros that stay zeros: continued pretraining of a sparse model (masks=fixed).

A weight of the blocks' matrices that is exactly zero has no gradient and never moves, and one that
is not never becomes zero. So the mask is the same after every step, and can be read off the weights
themselves: it takes no memory, is part of every checkpoint, and goes with its layer when layers are
removed. Biases, norms and embeddings, which may begin at zero, have no mask.

Axes: L layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from chopjax.errors import UserError
from chopjax.models.mesh import replicated
from chopjax.models.parameters import KERNELS, Params
from chopjax.progress import say


def without_gradient(params: Params, gradients: Params) -> Params:
    """Zero where the weight is: neither clipping nor momentum sees what would not move anyway."""
    return _on_kernels(lambda w, g: jnp.where(w == 0, jnp.zeros_like(g), g), params, gradients)


def zeros_kept(old: Params, new: Params) -> Params:
    """The new parameters with the old ones' zeros and no others: a weight whose update would have
    made it zero waits a step."""
    return _on_kernels(
        lambda w, v: jnp.where(w == 0, jnp.zeros_like(v), jnp.where(v == 0, w, v)), old, new
    )


def check_zeros(params: Params, mesh: Mesh) -> None:
    """Say how many weights stay at zero. Raises UserError where there is none."""
    kernels = [leaf for path, leaf in jax.tree.leaves_with_path(params) if _is_kernel(path)]

    def count(leaves: list[jax.Array]) -> list[jax.Array]:
        axes = [tuple(range(1, leaf.ndim)) for leaf in leaves]
        return [(leaf == 0).sum(axis) for leaf, axis in zip(leaves, axes, strict=True)]

    zeros_L = jax.jit(count, out_shardings=replicated(mesh))(kernels)
    zeros = sum(int(np.asarray(each, np.int64).sum()) for each in zeros_L)
    if not zeros:
        raise UserError(
            "masks=fixed: none of the weights of this model's matrices is zero; `chopjax sparsify` "
            "makes models with zeros"
        )
    say(f"masks: {zeros:,} of {sum(leaf.size for leaf in kernels):,} weights stay at zero")


def _on_kernels(change: Callable[[Any, Any], Any], params: Params, others: Params) -> Params:
    """change(weight, other) in the blocks' kernels; other in all the rest."""
    changed: Params = jax.tree.map_with_path(
        lambda path, w, other: change(w, other) if _is_kernel(path) else other, params, others
    )
    return changed


def _is_kernel(path: tuple[Any, ...]) -> bool:
    """blocks/attention/query, say."""
    blocks, *inner = (str(getattr(key, "key", key)) for key in path)
    return blocks == "blocks" and len(inner) == 2 and KERNELS.get(inner[1]) == inner[0]
