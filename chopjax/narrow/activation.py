"""Minitron's scores: how large what a layer's units give is (arXiv 2407.14679, §2.2).

Axes: B batch, T time, D model, F feed-forward, N query heads, H head size, U units.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from chopjax.chop.calibration import CalibrationBatch, real_tokens
from chopjax.models.compute import Compute
from chopjax.models.config import ModelConfig
from chopjax.models.parameters import Params
from chopjax.sparsify.inputs import watched


def readers(kind: str, config: ModelConfig) -> tuple[str, ...]:
    """The kernels that read what the units give: of `embed` what the norms give."""
    if kind == "embed":
        return "query", "router" if config.experts else "up"
    return {"mlp": ("down",), "heads": ("output",)}[kind]


@functools.partial(jax.jit, static_argnames=("config", "compute", "kinds"))
def observed(
    blocks: Params,
    batch: CalibrationBatch,
    hidden_BTD: jax.Array,
    config: ModelConfig,
    compute: Compute,
    kinds: Sequence[str],
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What leaves the one layer of `blocks`, and for each kernel of `readers` the sum over the
    batch's sequences of the squared mean over a sequence's tokens: of |x| of what a hidden unit
    gives, after activation and gate [F], or a norm [D]; of ‖x‖₂ of what a head gives, before
    attention's output matrix [N].
    """
    names = frozenset(name for kind in kinds for name in readers(kind, config))
    left_BTD, seen = watched(blocks, batch, hidden_BTD, config, compute, names)
    real_BT1 = real_tokens(batch)[..., None]
    lengths_B1 = jnp.maximum(batch.lengths_B, 1)[:, None]

    def squares(x: jax.Array, by_head: bool) -> jax.Array:
        x = x.astype(jnp.float32)
        size_BTU = jnp.linalg.norm(x, axis=-1) if by_head else jnp.abs(x)
        mean_BU = jnp.where(real_BT1, size_BTU, 0).sum(axis=1) / lengths_B1
        return jnp.square(mean_BU).sum(axis=0)

    return left_BTD, {name: squares(x, name == "output") for name, x in seen.items()}
