"""Byte ranges of remote files into their mirrors, a few connections at a time. No jax."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed

from chopjax.checkpoint import hub_requests
from chopjax.checkpoint.mirror import Mirror

CONNECTIONS = 4
PIECE_BYTES = 1 << 27  # of one request
RECORD_BYTES = 1 << 24  # a killed download loses at most this much a connection


@dataclasses.dataclass(frozen=True)
class Piece:
    """Bytes start..end-1 of a remote file, and where they belong."""

    url: str
    mirror: Mirror
    start: int
    end: int

    def split(self) -> Iterator[Piece]:
        for start in range(self.start, self.end, PIECE_BYTES):
            end = min(start + PIECE_BYTES, self.end)
            yield dataclasses.replace(self, start=start, end=end)


class Stopped(Exception):
    """Another connection failed, or the user pressed Ctrl-C."""


@contextlib.contextmanager
def connections() -> Iterator[tuple[ThreadPoolExecutor, threading.Event]]:
    """Threads, and an event that ends their downloads when the block is left."""
    stop = threading.Event()
    pool = ThreadPoolExecutor(CONNECTIONS)
    try:
        yield pool, stop
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def download(pieces: Iterable[Piece], advance: Callable[[int], None]) -> None:
    """All pieces; the first fault stops the others. `advance` is told the bytes that came."""
    counting = threading.Lock()

    def count(nbytes: int) -> None:
        with counting:
            advance(nbytes)

    with connections() as (pool, stop):
        running = [
            pool.submit(download_piece, part, stop, count)
            for piece in pieces
            for part in piece.split()
        ]
        for finished in as_completed(running):
            finished.result()


def download_piece(
    piece: Piece, stop: threading.Event, advance: Callable[[int], None] = lambda nbytes: None
) -> None:
    """One piece into its mirror; what has come is kept whatever happens."""
    recorded = position = piece.start
    file = piece.mirror.writer()

    def take(at: int, data: bytes) -> None:
        nonlocal recorded, position
        if stop.is_set():
            raise Stopped
        view = memoryview(data)
        while view:
            written = os.pwrite(file, view, at)
            at, view = at + written, view[written:]
        position = at
        if position - recorded >= RECORD_BYTES:
            piece.mirror.record(file, recorded, position)
            recorded = position
        advance(len(data))

    try:
        hub_requests.download(piece.url, piece.start, piece.end, piece.mirror.nbytes, take)
    finally:
        try:
            piece.mirror.record(file, recorded, position)
        finally:
            os.close(file)
