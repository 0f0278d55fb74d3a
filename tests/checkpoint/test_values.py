"""Moving and looking at arrays, against numpy."""

from __future__ import annotations

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chopjax.checkpoint import values
from chopjax.checkpoint.safetensors_file import DTYPES, FLOATS

floats = st.sampled_from([DTYPES[name] for name in FLOATS])


def random(shape: tuple[int, ...], dtype: np.dtype, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@settings(deadline=None, max_examples=200)
@given(st.data(), floats, floats)
def test_fill_is_assignment(data: st.DataObject, source: np.dtype, target: np.dtype) -> None:
    shape = tuple(data.draw(st.lists(st.sampled_from([0, 1, 2, 3, 130]), min_size=0, max_size=3)))
    order = data.draw(st.permutations(range(len(shape))))
    array = random(shape, source).transpose(order)
    starts = [data.draw(st.integers(0, size)) for size in array.shape]
    view = array[tuple(slice(start, None) for start in starts)]
    with np.errstate(all="ignore"):
        expected = view.astype(target)
    found = values.contiguous(view, target)
    assert found.flags.c_contiguous
    assert found.tobytes() == np.ascontiguousarray(expected).tobytes()


def test_fill_moves_nan_payloads_untouched() -> None:
    bits = np.array([[0x7F800001, 0xFFC12345], [0x7FC00000, 1]], np.uint32)
    found = values.contiguous(bits.view(np.float32).T)
    assert found.view(np.uint32).tolist() == bits.T.tolist()


@pytest.mark.parametrize("name", FLOATS)
def test_is_finite_knows_every_value(name: str) -> None:
    dtype = DTYPES[name]
    if dtype.itemsize <= 2:
        every = np.arange(1 << (8 * dtype.itemsize)).astype(f"u{dtype.itemsize}").view(dtype)
    else:
        special = [0, -0.0, 1, np.finfo(dtype).max, np.finfo(dtype).tiny, np.inf, -np.inf, np.nan]
        every = np.array(special, dtype)
    for i in range(0, len(every), max(1, len(every) // 4096)):
        one = every[i : i + 1]
        assert values.is_finite(one) == np.isfinite(float(one[0]))
    with np.errstate(invalid="ignore"):
        finite = every[np.isfinite(every.astype(np.float64))]
    assert values.is_finite(finite)
    assert not values.is_finite(every)


def test_a_single_nan_in_a_large_array_is_found() -> None:
    array = np.zeros(200_001, ml_dtypes.bfloat16)
    assert values.is_finite(array)
    for at in (0, 65_535, 65_536, 200_000):
        array[:] = 0
        array[at] = np.nan
        assert not values.is_finite(array)


def test_same_bytes() -> None:
    a = np.zeros(100_000, np.float32)
    b = a.copy()
    assert values.same_bytes(a, b)
    b[99_999] = -0.0  # equal as a number, not as bytes
    assert not values.same_bytes(a, b)
    assert not values.same_bytes(a, a.astype(np.float16))
    assert not values.same_bytes(a, a[1:])
    nan = np.full(3, np.nan, np.float32)
    assert values.same_bytes(nan, nan.copy())


@pytest.mark.parametrize("shape", [(3, 5), (1 << 11, 1 << 11), (0, 4)], ids=str)
def test_jax_computes_on_an_aligned_array_as_it_is(shape: tuple[int, ...]) -> None:
    array = values.aligned(shape, np.float32)
    array[...] = np.arange(array.size).reshape(shape)
    held = jax.device_put(array)
    np.testing.assert_array_equal(held, np.arange(array.size).reshape(shape))
    if array.size:
        assert held.unsafe_buffer_pointer() == array.ctypes.data
