"""Rotary positions and ALiBi. Axes: B batch, T time, N heads, H head size, R pairs that turn."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from chopjax.models.config import Rope


def frequencies(rope: Rope, head_dim: int) -> np.ndarray:
    """Radians a position for each pair of dimensions, float32 [R].

    The scalings follow transformers' modeling_rope_utils in float32, so that logits agree at
    positions where a rounding of the frequency would show.
    """
    dims = rope.dims or head_dim
    exponent = np.arange(0, dims, 2, dtype=np.float32) / np.float32(dims)
    if rope.kind == "longrope":  # LongRoPE (arXiv 2402.13753)
        stretch_R = np.asarray(rope.stretch, np.float32)
        return np.float32(1) / (stretch_R * np.float32(rope.theta) ** exponent)
    plain_R = np.float32(1) / np.float32(rope.theta) ** exponent
    if rope.kind == "default":
        return plain_R
    if rope.kind == "linear":
        return plain_R / np.float32(rope.factor)
    if rope.kind == "llama3":
        return _llama3(rope, plain_R)
    return _yarn(rope, plain_R, dims)


def _llama3(rope: Rope, plain_R: np.ndarray) -> np.ndarray:
    """Llama 3.1's scaling (arXiv 2407.21783): long wavelengths are stretched, short ones kept."""
    length = rope.original_max_positions
    wavelength_R = 2 * np.float32(math.pi) / plain_R
    stretched_R = plain_R / np.float32(rope.factor)
    smooth_R = (length / wavelength_R - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    blended_R = (1 - smooth_R) * stretched_R + smooth_R * plain_R
    result_R = np.where(wavelength_R > length / rope.low_freq_factor, stretched_R, plain_R)
    medium_R = (wavelength_R <= length / rope.low_freq_factor) & (
        wavelength_R >= length / rope.high_freq_factor
    )
    return np.where(medium_R, blended_R, result_R).astype(np.float32)


def _yarn(rope: Rope, plain_R: np.ndarray, dims: int) -> np.ndarray:
    """YaRN's NTK-by-parts interpolation (arXiv 2309.00071, section 3.2)."""

    def dimension(rotations: float) -> float:
        """The dimension whose pair turns this often over the original context."""
        turns = rope.original_max_positions / (rotations * 2 * math.pi)
        return dims * math.log(turns) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    span = high - low if high != low else 0.001
    ramp_R = np.clip((np.arange(dims // 2, dtype=np.float32) - low) / span, 0, 1)
    kept_R = 1 - ramp_R.astype(np.float32)
    mixed_R: np.ndarray = plain_R / np.float32(rope.factor) * (1 - kept_R) + plain_R * kept_R
    return mixed_R


def angles(rope: Rope, head_dim: int, positions_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cos and sin of every position, float32 [B, T, 1, R]. Computed once, used by every layer."""
    turn_BTR = positions_BT[..., None].astype(jnp.float32) * frequencies(rope, head_dim)
    factor = rope.attention_factor
    cos_BTR, sin_BTR = jnp.cos(turn_BTR) * factor, jnp.sin(turn_BTR) * factor
    return cos_BTR[:, :, None, :], sin_BTR[:, :, None, :]


def rotate(
    x_BTNH: jax.Array, cos_BT1R: jax.Array, sin_BT1R: jax.Array, interleaved: bool = False
) -> jax.Array:
    """Turn the first 2R of a head's dimensions; the others stay.

    The pairs are (h, h + R), the order in which Hugging Face stores Llama's weights, or, where
    interleaved, (2h, 2h + 1).
    """
    turned, still = x_BTNH[..., : 2 * cos_BT1R.shape[-1]], x_BTNH[..., 2 * cos_BT1R.shape[-1] :]
    wide = turned.astype(jnp.float32)
    if interleaved:
        first, second = wide[..., ::2], wide[..., 1::2]
    else:
        first, second = jnp.split(wide, 2, axis=-1)
    rotated = [first * cos_BT1R - second * sin_BT1R, second * cos_BT1R + first * sin_BT1R]
    if interleaved:
        x_new = jnp.stack(rotated, axis=-1).reshape(turned.shape)
    else:
        x_new = jnp.concatenate(rotated, axis=-1)
    x_new = x_new.astype(x_BTNH.dtype)
    return jnp.concatenate([x_new, still], axis=-1) if still.shape[-1] else x_new


def alibi_slopes(num_heads: int) -> tuple[float, ...]:
    """ALiBi's slope of each query head (arXiv 2108.12409, section 3), with the authors' choice for
    counts that are no power of two."""
    power = 2 ** math.ceil(math.log2(num_heads))
    slopes = [2.0 ** (-8 * j / power) for j in range(1, power + 1)]
    if power != num_heads:
        slopes = slopes[1::2] + slopes[::2]
    return tuple(slopes[:num_heads])
