"""What the matrices of one layer read, summed over the calibration tokens.

Axes: B batch, T time, D model, I a matrix's inputs, M = B·T tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from chopjax.chop.calibration import CalibrationBatch, positions, real_tokens
from chopjax.models import decoder
from chopjax.models.compute import Compute
from chopjax.models.config import ModelConfig
from chopjax.models.linear import linear
from chopjax.models.parameters import Params
from chopjax.sparsify import experts

# Kernel → the one whose inputs are looked at in its place: they read the same.
READS = {"query": "query", "key": "query", "value": "query", "output": "output"}
READS |= {"gate": "up", "up": "up", "down": "down"}

# Of READS → Σ xᵀx [I, I], or Σ x² [I]; float32. Of experts, see experts.py.
Sums = dict[str, jax.Array]


class _Watched:
    """A weight node that remembers what it is multiplied with, while a function is traced."""

    def __init__(self, kernel: jax.Array, name: str, seen: dict[str, jax.Array]):
        self._kernel, self._name, self._seen = kernel, name, seen

    def product(self, x: jax.Array, contracted: int) -> jax.Array:
        self._seen[self._name] = x
        return linear(x, self._kernel, contracted)


def watched(
    blocks: Params,
    batch: CalibrationBatch,
    hidden_BTD: jax.Array,
    config: ModelConfig,
    compute: Compute,
    names: Collection[str],
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What leaves the one layer of `blocks`, and what its kernels of these names read: [B, T]
    followed by the kernel's inputs. To be traced."""
    parts = decoder.parts({"blocks": blocks}, config, compute, positions(batch))
    layer = jax.tree.map(lambda stacked: stacked[0], parts.stack)
    seen: dict[str, jax.Array] = {}
    params = {
        part: {
            name: _Watched(leaf, name, seen) if name in names else leaf
            for name, leaf in inside.items()
        }
        if part in ("attention", "mlp")
        else inside
        for part, inside in layer.params.items()
    }
    return parts.block(hidden_BTD, layer._replace(params=params)), seen


def input_sums(
    blocks: Params,
    config: ModelConfig,
    compute: Compute,
    batches: Iterable[tuple[CalibrationBatch, Any]],
    products: bool,
) -> Sums:
    """Over all batches. blocks, config: of a decoder with this layer alone.

    batches: rows, and hidden_BTD that enters the layer. products: Σ xᵀx and not only its diagonal.
    """
    total: Sums = {}
    for batch, hidden_BTD in batches:
        sums = _sums(blocks, batch, hidden_BTD, config, compute, products)
        total = jax.tree.map(jnp.add, total, sums) if total else sums
    return total


@functools.partial(jax.jit, static_argnames=("config", "compute", "products"))
def _sums(
    blocks: Params,
    batch: CalibrationBatch,
    hidden_BTD: jax.Array,
    config: ModelConfig,
    compute: Compute,
    products: bool,
) -> Sums:
    names = {"query", "output", experts.READ} if config.experts else set(READS.values())
    _, seen = watched(blocks, batch, hidden_BTD, config, compute, names)
    real_M1 = real_tokens(batch).reshape(-1, 1)
    routed: Sums = {}
    if config.experts:
        x_MD = seen.pop(experts.READ).reshape(len(real_M1), -1)
        mlp = jax.tree.map(lambda stacked: stacked[0], blocks["mlp"])
        routed = experts.expert_sums(mlp, config, x_MD, real_M1, products)

    def added(x: jax.Array) -> jax.Array:
        x_MI = jnp.where(real_M1, x.reshape(len(real_M1), -1).astype(jnp.float32), 0)
        if not products:
            return jnp.square(x_MI).sum(axis=0)
        return jnp.matmul(x_MI.T, x_MI, precision="highest")

    return {name: added(x) for name, x in seen.items()} | routed
