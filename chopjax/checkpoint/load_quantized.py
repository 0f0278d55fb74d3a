"""Kernels quantized while they are read, or quantized already: host memory holds one matrix at a
time of each thread."""

from __future__ import annotations

import concurrent.futures
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from chopjax.checkpoint.shards import Index, shards_of
from chopjax.models.formats import FORMATS, held, quantize
from chopjax.models.quantized import Quantized

Encoded = tuple[np.ndarray, np.ndarray]  # codes [O, I], scales [O, S]


def read_quantized(
    read: Callable[[tuple[int, ...]], np.ndarray | Encoded],
    leading: tuple[int, ...],
    where: Quantized,
    threads: concurrent.futures.Executor,
) -> Quantized:
    """A quantized kernel on its devices.

    read: first indices (a layer; a layer's expert) → the matrix there, [inputs…, outputs…], of any
    float type; or its codes and scales, as `formats.encode` gives them. leading: how many there are
    of each. where: how codes and scales are sharded.
    """
    form = where.form
    codes_shape, scales_shape = ((*leading, *shape) for shape in form.shapes())
    # Of a device: the axes that scales have are split as those of codes are.
    scales_of = {
        next(iter(device.device_set)): index
        for index, devices in shards_of(where.scales, scales_shape).items()
        for device in devices
    }
    codes_parts, scales_parts = [], []
    for index, devices in shards_of(where.codes, codes_shape).items():
        codes = np.empty(_sizes(index), FORMATS[form.kind].codes)
        of_scales = scales_of[next(iter(devices[0].device_set))]
        scales = np.empty(_sizes(of_scales), np.float32)

        def fill(
            place: tuple[int, ...], index: Index = index, codes: Any = codes, scales: Any = scales
        ) -> None:
            here = tuple(p - start for p, (start, _) in zip(place, index, strict=False))
            codes[here], scales[here] = _part(read(place), where, index[len(leading) :])

        places = itertools.product(*(range(*bounds) for bounds in index[: len(leading)]))
        list(threads.map(fill, places))
        codes_parts += [jax.device_put(codes, device) for device in devices]
        scales_parts += [jax.device_put(scales, device) for device in devices]
    make = jax.make_array_from_single_device_arrays
    made = Quantized(
        make(codes_shape, where.codes, codes_parts),
        make(scales_shape, where.scales, scales_parts),
        form,
    )
    jax.block_until_ready(made)  # so that the host's copies go before the next are made
    return made


def _part(
    matrix: np.ndarray | Encoded, where: Quantized, cut: Index
) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales of the part of one matrix that `cut` says, of its codes."""
    form = where.form
    if isinstance(matrix, tuple):
        rows, scales_OS = matrix
    else:
        inputs = len(form.inputs)
        rows = np.moveaxis(matrix, range(inputs), range(-inputs, 0))
        rows = rows.reshape(math.prod(form.outputs), math.prod(form.inputs))
        if not form.by_row:
            return quantize(rows, form.kind, form.block)
    (first, last), makes = cut
    rows = rows[slice(*makes)]
    if form.block:
        rows = rows[:, 2 * first : 2 * last]
    if isinstance(matrix, tuple):
        scales_OS = scales_OS[slice(*makes)]
        if form.block:
            scales_OS = scales_OS[:, 2 * first // form.block : 2 * last // form.block]
        codes, scales = held(rows, scales_OS, form.block)
    else:
        codes, scales = quantize(rows, form.kind, form.block)
    # A scale may be that of a whole row, of which this device has some codes.
    return (codes if form.block else codes[first:last]), scales


def _sizes(index: Index) -> list[int]:
    return [stop - start for start, stop in index]
