"""Batches from the host's memory onto the mesh."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from chopjax.data.batch_source import BatchSource
from chopjax.data.batches import Batches
from chopjax.data.lists import weighted_folders
from chopjax.data.store import open_store
from chopjax.models.mesh import batch_sharding
from chopjax.train.settings import DataSettings
from chopjax.train.step import Batch


def on_mesh(source: BatchSource, index: int, mesh: Mesh) -> Batch:
    """Batch number `index`, its rows split over the mesh; each process reads its own alone."""
    size, sharding = source.batch_size, batch_sharding(mesh)
    edges = [
        place[0].indices(size)
        for place in sharding.addressable_devices_indices_map((size,)).values()
        if place is not None
    ]
    first, last = min(e[0] for e in edges), max(e[1] for e in edges)
    mine = source.rows(index, slice(first, last))

    def array_of(rows: np.ndarray) -> jax.Array:
        def part(place: tuple[slice, ...] | None) -> np.ndarray:
            start, stop, _ = (place or (slice(None),))[0].indices(size)
            return rows[start - first : stop - first]

        return jax.make_array_from_callback((size, *rows.shape[1:]), sharding, part)

    return {name: array_of(rows) for name, rows in mine.items()}


def training_batches(settings: DataSettings, seed: int, top_k: int = 0) -> Batches:
    """The batches of data.train: one store, or several as "FOLDER=WEIGHT,FOLDER=WEIGHT"; with so
    many of a teacher's likeliest tokens."""
    stores = [(open_store(folder), weight) for folder, weight in weighted_folders(settings.train)]
    return Batches(
        stores, settings.batch_size, settings.sequence_length, seed, settings.mask_documents, top_k
    )


Result = TypeVar("Result")


def prefetch(
    make: Callable[[int], Result], steps: Iterable[int], depth: int = 2
) -> Generator[Result, None, None]:
    """make(step) for each step in order, up to `depth` of them ahead, in one background thread.

    An exception of `make` is raised when its turn comes. Wrap it in contextlib.closing where the
    loop may be left early: the thread ends with the generator, after the batch that it is at.
    """
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as thread:
        try:
            for step in steps:
                waiting.append(thread.submit(make, step))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
