"""How much each layer, and each block of layers, turns the residual stream: one forward pass.

x^(ℓ) is the residual stream that enters layer ℓ, x^(L) the one that leaves the last layer, before
the final norm (the last hidden state that Hugging Face models give is the one after that norm).
Everything is summed up inside the scan over layers and over batches; hidden states are kept for
one batch at most, and for one token of each row by default. On a mesh, rows stay where they are.

Axes: B batch, T time, D model, L layers, M the L+1 places between layers, S chosen tokens.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from chopjax import interrupts
from chopjax.chop.calibration import CalibrationBatch, positions, real_tokens
from chopjax.models import decoder
from chopjax.models.compute import Compute
from chopjax.models.config import ModelConfig
from chopjax.models.parameters import Params


@dataclasses.dataclass(frozen=True)
class Residual:
    """What one pass tells. float64."""

    # d(ℓ, n) / the half turn, 0 to 1: mean over examples of the angle between x^(ℓ) and x^(ℓ+n).
    # distance_LL[ℓ, n-1]; nan where ℓ+n > L. Deeper Layers (arXiv 2403.17887, eq. 7).
    distance_LL: np.ndarray
    deviation_LL: np.ndarray  # its standard deviation over examples (or tokens)
    examples: int  # of which `distance_LL` is the mean: rows, or tokens where all were asked for
    # 1 - mean over tokens of cos(x^(ℓ), x^(ℓ+1)). ShortGPT's Block Influence (arXiv 2403.03853).
    influence_L: np.ndarray
    # Σ over tokens of the same: the layer score of Minitron and ModelOpt (arXiv 2407.14679).
    cosine_score_L: np.ndarray
    # mean over tokens of ‖x^(ℓ+1) - x^(ℓ)‖ / ‖x^(ℓ+1)‖ (weight subcloning, arXiv 2312.09299).
    magnitude_L: np.ndarray
    tokens: int  # over which the last three go


def measure_residual(
    params: Params,
    config: ModelConfig,
    compute: Compute,
    batches: Iterable[CalibrationBatch],
    every_token: bool = False,
) -> Residual:
    """Run the calibration batches once.

    every_token: angular distances over all tokens; by default, as in the paper, over the last one
    of each row alone.
    """
    totals: dict[str, np.ndarray] = {}
    for batch in batches:
        interrupts.check()
        sums = _sums(params, batch, config, compute, every_token)
        for name, value in sums.items():
            totals[name] = totals.get(name, 0.0) + np.asarray(value, np.float64)
    examples, tokens = totals["examples"], totals["tokens"]
    mean_MM = totals["angle"] / examples
    variance_MM = np.maximum(totals["square"] / examples - mean_MM**2, 0.0)
    return Residual(
        distance_LL=_by_block(mean_MM),
        deviation_LL=_by_block(np.sqrt(variance_MM)),
        examples=int(examples),
        influence_L=totals["turn"] / tokens,
        cosine_score_L=totals["turn"],
        magnitude_L=totals["magnitude"] / tokens,
        tokens=int(tokens),
    )


@functools.partial(jax.jit, static_argnames=("config", "compute", "every_token"))
def _sums(
    params: Params,
    batch: CalibrationBatch,
    config: ModelConfig,
    compute: Compute,
    every_token: bool,
) -> dict[str, jax.Array]:
    parts = decoder.parts(params, config, compute, positions(batch))
    real_BT = real_tokens(batch)
    last_B = jnp.maximum(batch.lengths_B - 1, 0)

    def chosen(x_BTD: jax.Array) -> jax.Array:
        if not every_token:
            x_BTD = jnp.take_along_axis(x_BTD, last_B[:, None, None], axis=1)
        return _unit(x_BTD.astype(jnp.float32))

    def step(x_BTD: jax.Array, layer: decoder.Layer) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        after_BTD = parts.block(x_BTD, layer)
        before, after = x_BTD.astype(jnp.float32), after_BTD.astype(jnp.float32)
        turn_BT = jnp.square(_unit(after) - _unit(before)).sum(axis=-1) / 2  # 1 - cos
        size_BT = _norm(after - before) / jnp.maximum(_norm(after), _TINY)
        sums = (jnp.sum(x_BT, where=real_BT) for x_BT in (turn_BT, size_BT[..., 0]))
        return after_BTD, (chosen(after_BTD), *sums)

    first_BTD = parts.embed(batch.tokens_BT)
    _, (later_LBSD, turn_L, magnitude_L) = jax.lax.scan(step, first_BTD, parts.stack)
    unit_MBSD = jnp.concatenate([chosen(first_BTD)[None], later_LBSD])
    counted_BS = real_BT if every_token else (batch.lengths_B > 0)[:, None]

    def to_all(unit_BSD: jax.Array) -> tuple[jax.Array, jax.Array]:
        angle_MBS = _angle(unit_BSD[None], unit_MBSD)
        counted_MBS = jnp.where(counted_BS[None], angle_MBS, 0.0)
        return counted_MBS.sum(axis=(1, 2)), jnp.square(counted_MBS).sum(axis=(1, 2))

    angle_MM, square_MM = jax.lax.map(to_all, unit_MBSD)
    return {
        "angle": angle_MM,
        "square": square_MM,
        "examples": jnp.sum(counted_BS),
        "turn": turn_L,
        "magnitude": magnitude_L,
        "tokens": jnp.sum(real_BT),
    }


_TINY = 1e-30


def _norm(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.square(x).sum(axis=-1, keepdims=True))


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(_norm(x), _TINY)


def _angle(u: jax.Array, v: jax.Array) -> jax.Array:
    """Angle between unit vectors in half turns.

    By Kahan's formula: arccos of a cosine loses half the digits where the angle is small, and is
    not a number where rounding lifts the cosine above 1.
    """
    apart, along = (jnp.sqrt(jnp.square(x).sum(axis=-1)) for x in (u - v, u + v))
    return 2 / jnp.pi * jnp.arctan2(apart, along)


def _by_block(x_MM: np.ndarray) -> np.ndarray:
    """[from place, to place] → [first layer ℓ, number of layers n - 1]."""
    num_layers = len(x_MM) - 1
    table_LL = np.full((num_layers, num_layers), np.nan)
    for layer in range(num_layers):
        for count in range(1, num_layers - layer + 1):
            table_LL[layer, count - 1] = x_MM[layer, layer + count]
    return table_LL
