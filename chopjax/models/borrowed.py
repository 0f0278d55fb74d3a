"""Blocks whose parameters lie in another model's stack: a chop beside its parent, held once.

The scan walks over row numbers and takes each layer out of the stack as it comes; nothing of it is
copied.
"""

from __future__ import annotations

from typing import Any

import jax
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict

from chopjax.models.bits import as_bits, of_bits
from chopjax.models.parameters import Params


class Borrowed(struct.PyTreeNode):
    """Stands where `blocks` stands among the parameters.

    rows_L: which row of the stack is each layer, int32. own: by the paths of kernels, weight nodes
    that want the stack's kernel as their `base` (an adapter's); every array in them has L first.
    """

    rows_L: jax.Array
    own: Params
    stack: Params | None  # the other model's blocks; None within a scan, which does not walk them


def without_stack(blocks: Any) -> Any:
    """What a scan walks over."""
    return blocks.replace(stack=None) if isinstance(blocks, Borrowed) else blocks


def layer_of(blocks: Any, layer: Any) -> Params:
    """The parameters of one layer. blocks: as they stand among the parameters; layer: what the scan
    has of it."""
    if not isinstance(blocks, Borrowed):
        found: Params = layer
        return found
    taken = of_bits(
        jax.tree.map(
            lambda w: jax.lax.dynamic_index_in_dim(w, layer.rows_L, 0, keepdims=False),
            as_bits(blocks.stack),
        )
    )
    own = flatten_dict(layer.own, sep="/")
    flat = {
        path: own[path].replace(base=kernel) if path in own else kernel
        for path, kernel in flatten_dict(taken, sep="/").items()
    }
    nested: Params = unflatten_dict(flat, sep="/")
    return nested
