"""What the backward pass keeps of a block, by Compute.remat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from chopjax.models.bits import as_bits, of_bits
from chopjax.models.mesh import on_processors

NAME = "kept"  # of every array that "dots" keeps …
MLP_NAME = "kept_of_mlp"  # … but for gate and up, which "dots_except_mlp" computes again
# cuDNN's forward pass, whose output and softmax sums have no names: it is kept by its primitive's.
CUDNN_FORWARD = "dot_product_attention_fwd"


def kept(x: jax.Array, name: str = NAME) -> jax.Array:
    """x, marked as dearer to compute again than to keep."""
    if x.dtype == jnp.bfloat16 and on_processors():
        return _kept_bits(x, name)
    marked: jax.Array = checkpoint_name(x, name)
    return marked


def kept_residual(x: jax.Array, name: str = NAME) -> jax.Array:
    """The same in the forward pass of a derivative of our own, which jax does not differentiate:
    jax.checkpoint would not see the mark within `kept`'s own derivative."""
    marked: jax.Array = of_bits(checkpoint_name(as_bits(x), name))
    return marked


_kept_bits = jax.custom_jvp(kept_residual, nondiff_argnums=(1,))  # bits have no derivative


@_kept_bits.defjvp
def _derivative(
    name: str, x: tuple[jax.Array], d_x: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return kept_residual(x[0], name), d_x[0]


def _keeps(*names: str) -> Callable[..., Any]:
    """jax.checkpoint's policy: what `kept` has marked so, and what cuDNN's attention has made."""
    by_name = jax.checkpoint_policies.save_only_these_names(*names)

    def is_kept(primitive: Any, *inputs: Any, **parameters: Any) -> Any:
        if primitive.name.startswith(CUDNN_FORWARD):
            return True
        return by_name(primitive, *inputs, **parameters)

    return is_kept


# All but "none", where nothing is computed again.
POLICIES = {
    "dots": _keeps(NAME, MLP_NAME),
    "dots_except_mlp": _keeps(NAME),
    "full": jax.checkpoint_policies.nothing_saveable,
}
