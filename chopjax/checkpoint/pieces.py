"""What a view of a tensor shows, read from its file piece by piece, and little else of the file.

A mapped file is read around every byte that is touched: of a matrix that is cut through its rows
all of it would come from the disk, however little a process wants. Here only the stretches that
are wanted are asked for, and of a file none is kept. No jax.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np

from chopjax.checkpoint.packed import Unpacked
from chopjax.checkpoint.safetensors_file import TensorInfo
from chopjax.errors import UserError

PIECE = 1 << 22  # bytes of a file, wanted or between, that are worked off at a time
GAP = 4096  # bytes; where no more lie between two stretches they are read with them, as by a disk


def pieces(
    tensor: TensorInfo, mapped: np.ndarray, view: np.ndarray
) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """Parts that make up a view of a tensor: where in the view each begins, and its values.

    mapped: what tensor.read() gave, which is not touched. view: of it, in any order of axes; one
    that numpy could only make by copying is given back as it is, and so are numbers of no file.
    """
    if isinstance(tensor, Unpacked) or not np.may_share_memory(mapped, view):
        yield (0,) * view.ndim, view
        return
    order = sorted(range(view.ndim), key=lambda axis: (-view.strides[axis], -view.shape[axis]))
    back = np.argsort(order)
    filed = view.transpose(order)  # as the file has it
    with tensor.open() as file:
        for cut in _cuts(filed):
            part = filed[cut]
            start = tensor.start + _address(part) - _address(mapped)
            corner = [bounds.start for bounds in cut]
            values = _read(file.fileno(), start, part, tensor)
            yield tuple(corner[axis] for axis in back), values.transpose(back)


def _cuts(filed: np.ndarray) -> Iterator[tuple[slice, ...]]:
    """Slices along the first axes, each over PIECE bytes of the file at most."""
    shape, strides = filed.shape, filed.strides
    axis = next(axis for axis, stride in enumerate(strides) if stride <= PIECE)
    step = PIECE // strides[axis]
    rest = tuple(slice(0, size) for size in shape[axis + 1 :])
    for outer in np.ndindex(shape[:axis]):
        before = tuple(slice(at, at + 1) for at in outer)
        for at in range(0, shape[axis], step):
            yield (*before, slice(at, min(at + step, shape[axis])), *rest)


def _read(file: int, start: int, part: np.ndarray, tensor: TensorInfo) -> np.ndarray:
    """Values of a part of a mapped tensor whose axes lie as in the file, from byte `start` on."""
    axis, stretch = part.ndim, part.itemsize
    while axis and (part.shape[axis - 1] == 1 or part.strides[axis - 1] - stretch <= GAP):
        axis -= 1
        stretch += (part.shape[axis] - 1) * part.strides[axis]
    starts = np.full((), start)
    for size, stride in zip(part.shape[:axis], part.strides[:axis], strict=True):
        starts = starts[..., None] + stride * np.arange(size)
    raw = np.empty((starts.size, stretch), np.uint8)
    for row, at in zip(raw, starts.flat, strict=True):
        done = 0
        while done < stretch:
            came = os.preadv(file, [row[done:].data], int(at) + done)
            if not came:
                raise UserError(
                    f"{tensor.file}: ends inside {tensor.name}, and did not a moment ago"
                )
            done += came
    strides = raw.reshape(*part.shape[:axis], stretch).strides[:-1]
    return np.ndarray(part.shape, part.dtype, raw, strides=strides + part.strides[axis:])


def _address(array: np.ndarray) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
