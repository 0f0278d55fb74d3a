"""What the backward pass keeps of a block where Compute.remat is "dots"."""

from __future__ import annotations

from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

NAME = "kept"  # of every array that is kept
# cuDNN's forward pass, whose output and softmax sums have no names: it is kept by its primitive's.
CUDNN_FORWARD = "dot_product_attention_fwd"
_by_name = jax.checkpoint_policies.save_only_these_names(NAME)


def kept(x: jax.Array) -> jax.Array:
    """x, marked as dearer to compute again than to keep."""
    marked: jax.Array = checkpoint_name(x, NAME)
    return marked


def is_kept(primitive: Any, *inputs: Any, **parameters: Any) -> Any:
    """jax.checkpoint's policy: what `kept` has marked, and what cuDNN's attention has made."""
    if primitive.name.startswith(CUDNN_FORWARD):
        return True
    return _by_name(primitive, *inputs, **parameters)
