"""Byte ranges of remote files into their mirrors, a few connections at a time.

Ranges are checked here. HfFileSystem, which reads ranges as well, looks neither at the status nor
at Content-Range: from a server that ignores the range it hands out bytes of another place. No jax.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, BinaryIO

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.utils import hf_raise_for_status, http_stream_backoff

from chopjax.checkpoint.hub_requests import RangeRefused, headers, in_one_line
from chopjax.checkpoint.mirror import Mirror
from chopjax.progress import say

CONNECTIONS = 4
PIECE_BYTES = 1 << 27  # of one request
RECORD_BYTES = 1 << 24  # a killed download loses at most this much a connection
DROPS = 5  # of the connection, without one byte between them
LONGEST_WAIT = 8.0  # seconds after a drop; the first wait is one


@dataclasses.dataclass(frozen=True)
class ByteRange:
    """Bytes start..end-1 of a remote file, and where they belong."""

    url: str
    mirror: Mirror
    start: int
    end: int

    def split(self) -> Iterator[ByteRange]:
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


def download(pieces: Iterable[ByteRange], advance: Callable[[int], None]) -> None:
    """All pieces; the first fault stops the others. `advance` is told the bytes that came."""
    counting = threading.Lock()

    def count(nbytes: int) -> None:
        with counting:
            advance(nbytes)

    with connections() as (pool, stop):
        parts = [part for piece in pieces for part in piece.split()]
        running = [pool.submit(download_piece, part, stop, count) for part in parts]
        for finished in as_completed(running):
            finished.result()


def download_piece(
    piece: ByteRange, stop: threading.Event, advance: Callable[[int], None] = lambda nbytes: None
) -> None:
    """One piece into its mirror, however often the connection drops; what has come is kept.

    Raises RangeRefused for anything but the range.
    """
    drops = 0
    with piece.mirror.path.open("r+b") as file:
        file.seek(piece.start)
        while (start := file.tell()) < piece.end:
            try:
                _request(dataclasses.replace(piece, start=start), file, stop, advance)
            except HfHubHTTPError:
                raise
            except HTTPError as error:
                drops = 1 if file.tell() > start else drops + 1
                if drops > DROPS:
                    raise
                say(f"hub: {in_one_line(error)}; going on from byte {file.tell():,}")
                if stop.wait(min(2 ** (drops - 1), LONGEST_WAIT)):
                    raise Stopped from None


def _request(
    piece: ByteRange, file: BinaryIO, stop: threading.Event, advance: Callable[[int], None]
) -> None:
    """One request. It begins at the hub, whose redirections to signed addresses expire."""
    recorded = position = piece.start
    with http_stream_backoff(
        "GET",
        piece.url,
        headers=headers() | {"Range": f"bytes={piece.start}-{piece.end - 1}"},
        timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        follow_redirects=True,
        retry_on_exceptions=(),  # it cannot go on in mid-body
    ) as response:
        hf_raise_for_status(response)
        _check(response, piece)
        try:
            for chunk in response.iter_raw():  # a chunk size would hold bytes back
                if stop.is_set():
                    raise Stopped
                if len(chunk) > piece.end - position:
                    raise RangeRefused("more bytes came than were asked for")
                file.write(chunk)
                position += len(chunk)
                advance(len(chunk))
                if position - recorded >= RECORD_BYTES:
                    piece.mirror.record(file, recorded, position)
                    recorded = position
        finally:
            piece.mirror.record(file, recorded, position)
    if position == piece.start:
        raise HTTPError("an empty answer")


def _check(response: Any, piece: ByteRange) -> None:
    """Fewer bytes than asked for may come; never others."""
    if response.status_code != 206:
        raise RangeRefused(f"status {response.status_code} instead of 206")
    content = response.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", content.strip())
    if not match or int(match[1]) != piece.start or int(match[2]) >= piece.end:
        raise RangeRefused(f"Content-Range {content!r} for bytes {piece.start}-{piece.end - 1}")
    if match[3] not in ("*", str(piece.mirror.nbytes)):
        raise RangeRefused(f"the file now has {match[3]} bytes, not {piece.mirror.nbytes}")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise RangeRefused("the answer is compressed")
