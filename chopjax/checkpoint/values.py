"""Arrays of checkpoints on the host: moving them between layouts, and looking at their values.

Numpy moves a transposed view element by element across the cache; here that is done in tiles,
several times as fast. No jax.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from chopjax.checkpoint.safetensors_file import DTYPES

TILE = 128  # elements along each side; 64 kB at four bytes
LINE = 64  # bytes of a processor's cache that travel together

# The exponent bits of each type: all of them set means infinity or not a number. The exception is
# float8_e4m3fn, which has no infinity and one NaN, of all bits but the sign's.
_ALL_ONES = {
    DTYPES["F8_E4M3"]: 0x7F,
    DTYPES["F8_E5M2"]: 0x7C,
    DTYPES["F16"]: 0x7C00,
    DTYPES["BF16"]: 0x7F80,
    DTYPES["F32"]: 0x7F80_0000,
    DTYPES["F64"]: 0x7FF0_0000_0000_0000,
}


def _bits(array: np.ndarray) -> np.ndarray:
    """The same array as unsigned integers: what only moves need not know it is a float."""
    return array.view(f"u{array.dtype.itemsize}")


def fill(out: np.ndarray, view: np.ndarray) -> None:
    """out[...] = view, converting if the types differ. Fast for any order of axes."""
    if out.dtype == view.dtype:
        out, view = _bits(out), _bits(view)
    long = [axis for axis in range(view.ndim) if view.shape[axis] > 1]
    near = min(long, key=lambda axis: view.strides[axis], default=0)  # nearest in the file
    with np.errstate(over="ignore", invalid="ignore"):  # the caller looks at the result
        if not long or near == long[-1]:
            out[...] = view
            return
        steps = [TILE if axis in (near, long[-1]) else 1 for axis in range(view.ndim)]
        starts = [range(0, size, step) for size, step in zip(view.shape, steps, strict=True)]
        for corner in itertools.product(*starts):
            tile = tuple(slice(at, at + step) for at, step in zip(corner, steps, strict=True))
            out[tile] = view[tile].copy(order="K")


def aligned(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """An empty array from a boundary of 64 bytes on, which jax on processors takes as it is.

    Where jax copies, its memory comes in small pages; numpy asks Linux for huge ones, and a token
    is decoded in 3 % less time.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(size + LINE, np.uint8)
    start = -raw.ctypes.data % LINE
    array: np.ndarray = raw[start : start + size].view(dtype).reshape(shape)
    return array


def contiguous(view: np.ndarray, dtype: np.dtype[Any] | None = None) -> np.ndarray:
    """A copy in the order of its axes."""
    out = np.empty(view.shape, dtype or view.dtype)
    fill(out, view)
    return out


def is_finite(array: np.ndarray) -> bool:
    """Whether a contiguous array holds neither infinity nor NaN. Piece by piece in the cache."""
    bits = _bits(array).reshape(-1)
    ones = bits.dtype.type(_ALL_ONES[array.dtype])
    pieces = range(0, bits.size, 1 << 16)
    return not any(((bits[at : at + (1 << 16)] & ones) == ones).any() for at in pieces)


def same_bytes(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two contiguous arrays are equal bit for bit. Piece by piece in the cache."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    a, b = _bits(a).reshape(-1), _bits(b).reshape(-1)
    pieces = range(0, a.size, 1 << 16)
    return all(np.array_equal(a[at : at + (1 << 16)], b[at : at + (1 << 16)]) for at in pieces)
