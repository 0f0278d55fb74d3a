"""The feed-forward's activations, by the names of ModelConfig.activation."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from chopjax.models.mesh import on_processors

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),  # Primer (arXiv 2109.08668)
}


def activated(name: str, x: jax.Array, up: jax.Array | None = None) -> jax.Array:
    """activation(x), times `up` where it is gated (arXiv 2002.05202), in x's dtype.

    Processors compute it of bfloat16 in float32 and round the result: left to itself, XLA rounds
    there after each operation, which takes nearly three times as long (jax 0.10).
    """
    wide = jnp.float32 if x.dtype == jnp.bfloat16 and on_processors() else x.dtype
    y = ACTIVATIONS[name](x.astype(wide))
    if up is not None:
        y *= up.astype(wide)
    return y.astype(x.dtype)
