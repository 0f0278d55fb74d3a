"""Rotary positions and ALiBi. Axes: B batch, T time, N heads, H head size, R pairs that turn."""

from __future__ import annotations

import functools
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
    interleaved, (2h, 2h + 1). cos and sin have no gradient.
    """
    return _rotate(x_BTNH, cos_BT1R, sin_BT1R, interleaved)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _rotate(
    x_BTNH: jax.Array, cos_BT1R: jax.Array, sin_BT1R: jax.Array, interleaved: bool
) -> jax.Array:
    by_product = functools.partial(rotated_by_product, interleaved=interleaved)
    by_pairs = functools.partial(rotated_by_pairs, interleaved=interleaved)
    turned: jax.Array = jax.lax.platform_dependent(
        x_BTNH, cos_BT1R, sin_BT1R, tpu=by_product, default=by_pairs
    )
    return turned


def _rotate_forward(
    x_BTNH: jax.Array, cos_BT1R: jax.Array, sin_BT1R: jax.Array, interleaved: bool
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _rotate(x_BTNH, cos_BT1R, sin_BT1R, interleaved), (cos_BT1R, sin_BT1R)


def _rotate_backward(
    interleaved: bool, angles: tuple[jax.Array, jax.Array], d_BTNH: jax.Array
) -> tuple[jax.Array, None, None]:
    """The gradient is turned back."""
    cos_BT1R, sin_BT1R = angles
    return _rotate(d_BTNH, cos_BT1R, -sin_BT1R, interleaved), None, None


_rotate.defvjp(_rotate_forward, _rotate_backward)


def rotated_by_product(
    x_BTNH: jax.Array, cos_BT1R: jax.Array, sin_BT1R: jax.Array, interleaved: bool
) -> jax.Array:
    """x cos + (x P) sin, where P puts each dimension, with its sign, in its partner's place.

    A TPU, whose vectors have 128 numbers, takes longer to cut heads into halves and to join them
    than for the product. With one 1 or -1 in each column of P it is exact.
    """
    size, turns = x_BTNH.shape[-1], cos_BT1R.shape[-1]
    partner_HH = np.zeros((size, size), np.float32)
    pairs = np.arange(turns)
    first, second = (2 * pairs, 2 * pairs + 1) if interleaved else (pairs, pairs + turns)
    partner_HH[second, first], partner_HH[first, second] = -1, 1
    cos_BT1H = _of_dimensions(cos_BT1R, size, interleaved, 1)
    sin_BT1H = _of_dimensions(sin_BT1R, size, interleaved, 0)
    partners_BTNH = jnp.dot(
        x_BTNH,
        jnp.asarray(partner_HH, x_BTNH.dtype),
        precision="highest" if x_BTNH.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )
    turned_BTNH = x_BTNH.astype(jnp.float32) * cos_BT1H + partners_BTNH * sin_BT1H
    return turned_BTNH.astype(x_BTNH.dtype)


def _of_dimensions(x_BT1R: jax.Array, size: int, interleaved: bool, still: int) -> jax.Array:
    """A pair's number for both of its dimensions; `still` for those that do not turn."""
    both = jnp.repeat(x_BT1R, 2, -1) if interleaved else jnp.concatenate([x_BT1R, x_BT1R], -1)
    rest = [(0, 0)] * (both.ndim - 1) + [(0, size - both.shape[-1])]
    return jnp.pad(both, rest, constant_values=still)


def rotated_by_pairs(
    x_BTNH: jax.Array, cos_BT1R: jax.Array, sin_BT1R: jax.Array, interleaved: bool
) -> jax.Array:
    """A pair as its two numbers."""
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
