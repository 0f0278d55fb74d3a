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

# Kind of units → the kernel that reads what they give.
_READERS = {"mlp": "down", "heads": "output"}


@functools.partial(jax.jit, static_argnames=("config", "compute", "kinds"))
def observed(
    blocks: Params,
    batch: CalibrationBatch,
    hidden_BTD: jax.Array,
    config: ModelConfig,
    compute: Compute,
    kinds: Sequence[str],
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What leaves the one layer of `blocks`, and for each kind the sum over the batch's sequences
    of the squared mean over a sequence's tokens: of |x| of what a hidden unit gives, after
    activation and gate [F]; of ‖x‖₂ of what a head gives, before attention's output matrix [N].
    """
    names = frozenset(_READERS[kind] for kind in kinds)
    left_BTD, seen = watched(blocks, batch, hidden_BTD, config, compute, names)
    real_BT1 = real_tokens(batch)[..., None]
    lengths_B1 = jnp.maximum(batch.lengths_B, 1)[:, None]

    def squares(kind: str) -> jax.Array:
        x = seen[_READERS[kind]].astype(jnp.float32)
        size_BTU = jnp.abs(x) if kind == "mlp" else jnp.linalg.norm(x, axis=-1)
        mean_BU = jnp.where(real_BT1, size_BTU, 0).sum(axis=1) / lengths_B1
        return jnp.square(mean_BU).sum(axis=0)

    return left_BTD, {kind: squares(kind) for kind in kinds}
