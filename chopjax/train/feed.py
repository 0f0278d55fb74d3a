"""Batches from the host's memory onto the mesh, the next one while a step runs."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from chopjax.train.mesh import batch_sharding
from chopjax.train.step import Batch

AHEAD = 2  # batches prepared or on the device before they are asked for


def on_mesh(batch: Mapping[str, np.ndarray], mesh: Mesh) -> Batch:
    """A batch that this process holds whole; only its own rows go to its devices."""
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(dict(batch), sharding)
    return {
        name: jax.make_array_from_callback(array.shape, sharding, array.__getitem__)
        for name, array in batch.items()
    }


def rows_on_mesh(
    rows: Callable[[slice], Mapping[str, np.ndarray]], shape: tuple[int, int], mesh: Mesh
) -> Batch:
    """A batch [B, T] of which this process makes the rows of its own devices alone."""
    sharding = batch_sharding(mesh)
    parts: dict[tuple[int, int], Mapping[str, np.ndarray]] = {}
    for index in sharding.addressable_devices_indices_map(shape).values():
        assert index is not None  # every device of a mesh holds rows
        start, stop, _ = index[0].indices(shape[0])
        if (start, stop) not in parts:
            parts[start, stop] = rows(slice(start, stop))

    def part(name: str) -> Callable[[Any], np.ndarray]:
        return lambda index: parts[index[0].indices(shape[0])[:2]][name]

    names = next(iter(parts.values()))
    return {name: jax.make_array_from_callback(shape, sharding, part(name)) for name in names}


class Feed:
    """The batches of consecutive steps, made by a thread ahead of time.

    batches: data.batches.Batches, whose batch is a pure function of the step. Steps count from 0:
    the batch of step s is the one for the update after s updates.
    """

    def __init__(self, batches: Any, shape: tuple[int, int], mesh: Mesh, start: int, stop: int):
        self._batches, self._shape, self._mesh = batches, shape, mesh
        self._next, self._stop = start, stop
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "batches")
        self._waiting: list[concurrent.futures.Future[Batch]] = []
        self._fill()

    def _fill(self) -> None:
        while len(self._waiting) < AHEAD and self._next < self._stop:
            self._waiting.append(self._thread.submit(self._make, self._next))
            self._next += 1

    def _make(self, step: int) -> Batch:
        if jax.process_count() == 1:
            return on_mesh(self._batches.batch(step), self._mesh)
        return rows_on_mesh(lambda rows: self._batches.rows(step, rows), self._shape, self._mesh)

    def next(self) -> Batch:
        """The batch of the next step."""
        batch = self._waiting.pop(0).result()
        self._fill()
        return batch

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *exception: object) -> None:
        self._thread.shutdown(cancel_futures=True)
