"""Quantized kernels: bitsandbytes' own codes, values and products, in every layout."""

from __future__ import annotations

import math

import bitsandbytes.functional as bnb
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chopjax.models.formats import Form, Kind, quantize
from chopjax.models.quantized import Quantized

BLOCKS: dict[Kind, int] = {"nf4": 64, "int4": 32, "int8": 0, "fp8": 0}
# How far a number may be moved, as a share of the largest magnitude that shares its scale: half of
# NF4's widest gap and of the integers' step; e4m3 has steps of 32 below its largest, 448.
HALF_STEPS: dict[Kind, float] = {
    "nf4": 0.153,
    "int4": 0.51 / 7,
    "int8": 0.51 / 127,
    "fp8": 17 / 448,
}


def node_of(kernel: np.ndarray, inputs: int, kind: Kind) -> Quantized:
    """kernel: [inputs…, outputs…]."""
    block = BLOCKS[kind]
    form = Form(kind, kernel.shape[:inputs], kernel.shape[inputs:], block)
    rows = np.moveaxis(kernel, range(inputs), range(-inputs, 0))
    rows = rows.reshape(math.prod(form.outputs), math.prod(form.inputs))
    codes, scales = quantize(rows, kind, block)
    assert (codes.shape, scales.shape) == form.shapes()
    return Quantized(jnp.asarray(codes), jnp.asarray(scales), form)


# Rows of whole blocks, among them one that is chunked; blocks that cross rows; an odd number.
@pytest.mark.parametrize("shape", [(48, 128), (3000, 512), (30, 100), (7, 33)])
def test_codes_scales_and_values_are_bitsandbytes(shape: tuple[int, int]) -> None:
    weights = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    weights[0, : shape[1] // 2] = 0  # a block of nothing
    packed, state = bnb.quantize_4bit(torch.tensor(weights), blocksize=64, quant_type="nf4")
    codes, scales = quantize(weights, "nf4", 64)
    one_row = codes.ndim == 1  # blocks cross rows
    codes, scales = (codes[None], scales[None]) if one_row else (codes.T, scales.T)
    blocks = codes.reshape(*scales.shape, 32)
    ours = np.concatenate([blocks >> 4, blocks & 15], axis=-1).reshape(-1)
    theirs = packed.numpy().reshape(-1)  # neighbours in a byte
    theirs = np.stack([theirs >> 4, theirs & 15], axis=-1).reshape(-1)[: weights.size]
    np.testing.assert_array_equal(ours[: weights.size], theirs)
    np.testing.assert_array_equal(scales.reshape(-1), state.absmax.numpy())
    values = node_of(weights.T, 1, "nf4").unpacked(jnp.float32)
    np.testing.assert_array_equal(values.T, bnb.dequantize_4bit(packed, state).numpy())


@pytest.mark.parametrize("kind", BLOCKS)
@settings(max_examples=10, deadline=None)
@given(
    sides=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    inputs=st.integers(1, 2),
    seed=st.integers(0, 9),
)
def test_values_are_within_half_a_step_in_the_kernel_s_own_layout(
    kind: Kind, sides: list[int], inputs: int, seed: int
) -> None:
    inputs = min(inputs, len(sides) - 1)
    if kind == "int4":
        sides = [32, *sides[1:]]
    kernel = np.random.default_rng(seed).normal(size=sides).astype(np.float32)
    made = np.asarray(node_of(kernel, inputs, kind).kernel(jnp.float32))
    assert made.shape == kernel.shape
    most = np.abs(kernel).max() * HALF_STEPS[kind]
    assert np.abs(made - kernel).max() <= most + 1e-7


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize(("sides", "inputs"), [((64, 3, 10), 1), ((4, 16, 24), 2), ((10, 9), 1)])
def test_the_product_and_its_gradient_are_those_of_the_values(
    kind: Kind, sides: tuple[int, ...], inputs: int
) -> None:
    random = np.random.default_rng(1)
    if kind == "int4" and sides == (10, 9):
        sides = (96, 9)
    node = node_of(random.normal(size=sides).astype(np.float32), inputs, kind)
    x = jnp.asarray(random.normal(0, 0.1, (2, 5, *sides[:inputs])), jnp.float32)
    wide = node.kernel(jnp.float32)

    def ours(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(node.product(x, inputs)))

    def theirs(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(jnp.tensordot(x, wide, inputs)))

    (got, d_got), (want, d_want) = (jax.value_and_grad(f)(x) for f in (ours, theirs))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_allclose(d_got, d_want, atol=1e-5)


def test_a_row_s_scale_is_its_largest_magnitude_over_127() -> None:
    kernel = np.array([[1.0, -4.0], [2.0, 0.0], [-3.0, 1.0]], np.float32)
    codes, scales = quantize(kernel.T, "int8", 0)
    np.testing.assert_array_equal(scales, np.array([3 / 127, 4 / 127], np.float32))
    assert codes.T.tolist() == [[42, 85, -127], [-127, 0, 32]]
