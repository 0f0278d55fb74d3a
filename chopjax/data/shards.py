"""Tokenising pieces of work into shards of a token store, in several processes.

A piece is done when its record is on disk, and that is written last. Shards are a function of
piece and job alone, so it does not matter which process makes one, nor how often.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import pickle
import time
import traceback
from array import array
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO, Any

import numpy as np

from chopjax import interrupts
from chopjax.data.chat import ChatEncoder, Encoded
from chopjax.data.sources import Piece
from chopjax.data.store import Shard, documents_file, tokens_file, weights_file
from chopjax.data.tokenizer import Tokenizer
from chopjax.disk.atomic import new_file
from chopjax.errors import UserError
from chopjax.progress import progress

_ENCODE_CHARACTERS = 1 << 19  # at once
_LOOK_SECONDS = 0.3  # between looks at the workers


@dataclasses.dataclass(frozen=True)
class Job:
    """All that decides what is in the shards."""

    tokenizer: Tokenizer
    chat: ChatEncoder | None  # documents are conversations, see messages.as_text
    before: tuple[int, ...]  # the token put before every document, if any …
    after: tuple[int, ...]  # … and after it
    dtype: str
    held_out_limit: int | None  # documents whose text_hash is below it are held out
    folder: Path  # shards go here, or into its subfolders train and held_out …
    records: Path  # … and what they hold here
    pieces: Sequence[Piece]

    def part(self, text: str) -> str:
        """Which store a document goes to."""
        if self.held_out_limit is None:
            return ""
        return "held_out" if text_hash(text) < self.held_out_limit else "train"

    def encode(self, texts: list[str]) -> list[list[Encoded]]:
        """Of each document what is stored of it, mostly one."""
        if self.chat is not None:
            return self.chat.encode_batch(texts)
        ids = self.tokenizer.encode_batch(texts)
        return [[Encoded(text, of_text, None)] for text, of_text in zip(texts, ids, strict=True)]

    @property
    def parts(self) -> tuple[str, ...]:
        return ("",) if self.held_out_limit is None else ("train", "held_out")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardRecord(Shard):
    """A shard and what only the sum of all is told of."""

    text_bytes: int
    largest_id: int
    weighted_tokens: int = 0
    left_out: int = 0  # conversations whose assistant says nothing


def text_hash(text: str) -> int:
    """64 evenly spread bits. Equal texts are held out together or not at all."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def record_path(records: Path, number: int) -> Path:
    return records / f"{number:05}.json"


def read_record(job: Job, number: int) -> dict[str, ShardRecord] | None:
    """What a finished piece holds, by part; None where it is not finished."""
    try:
        said = json.loads(record_path(job.records, number).read_bytes())
        records = {part: ShardRecord(**record) for part, record in said.items()}
        sizes = [(job.folder / p / tokens_file(number)).stat().st_size for p in records]
    except FileNotFoundError:
        return None
    itemsize = np.dtype(job.dtype).itemsize
    whole = sizes == [itemsize * record.tokens for record in records.values()]
    return records if whole else None


def make_shards(job: Job, numbers: Sequence[int], workers: int, tokens_before: int) -> None:
    """Make the shards of some pieces, with a progress bar. Finished ones stay when it fails."""
    if not numbers:
        return
    sizes = [sum(part.size for part in piece) for piece in job.pieces]
    known = all(part.source.size is not None for piece in job.pieces for part in piece)
    begun = sum(sizes) - sum(sizes[number] for number in numbers)
    total = sum(sizes) if known else None
    start = time.monotonic()
    with progress("prepare", total, "B", begun) as bar:

        def show(read: int, tokens: int) -> None:
            done = begun + read if total is None else min(begun + read, total)
            rate = f"{tokens / (time.monotonic() - start):,.0f}"
            bar.update(done, **{"tokens": f"{tokens_before + tokens:,}", "tokens/s": rate})

        for _ in in_processes(_make_shard, job, numbers, workers, show):
            pass


def smallest_hashes(job: Job, count: int, workers: int) -> np.ndarray:
    """The `count` smallest text hashes of all documents, ascending, uint64 (fewer if there are)."""
    total = sum(part.size for piece in job.pieces for part in piece)
    smallest = np.empty(0, np.uint64)
    with progress("choose held-out documents", total, "B") as bar:
        numbers = range(len(job.pieces))

        def show(read: int, _: int) -> None:
            bar.update(min(read, total))

        for hashes in in_processes(_piece_hashes, job, numbers, workers, show):
            smallest = np.sort(np.concatenate([smallest, hashes]))[:count]
    return smallest


def in_processes(
    work: Callable[[int], Any],
    job: Job,
    numbers: Sequence[int],
    workers: int,
    show: Callable[[int, int], None],
) -> Iterator[Any]:
    """Results of `work` on pieces, in no particular order.

    show: called often with the bytes read and the tokens made by all workers so far. However this
    ends, no worker outlives it; a piece that one is at is begun again another time.
    """
    # Fresh processes: a fork of one that runs JAX may hang.
    context = multiprocessing.get_context("spawn")
    count = max(1, min(workers, len(numbers)))
    threads = max(1, workers // count)  # where there are fewer pieces than workers
    read = tokens = 0
    left = iter(numbers)
    with contextlib.ExitStack() as stack:
        pool: dict[Connection, BaseProcess] = {}
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs,), daemon=True)
            stack.enter_context(interrupts.running(process))
            theirs.close()  # so that the end of the worker is the end of the pipe
            pool[stack.enter_context(ours)] = process
        while pool:
            for worker in wait(list(pool), _LOOK_SECONDS):
                assert isinstance(worker, Connection)
                with _named_death(pool[worker]):
                    kind, *content = worker.recv()
                    if kind == READY:
                        worker.send((job, work, threads))
                    if kind in (READY, DONE):
                        number = next(left, None)
                        worker.send(number)
                        if number is None:
                            del pool[worker]
                if kind == COUNTED:
                    read, tokens = read + content[0], tokens + content[1]
                elif kind == FAILED:
                    raise content[0]
                elif kind == DONE:
                    yield content[0]
            interrupts.check()
            show(read, tokens)


@contextlib.contextmanager
def _named_death(process: BaseProcess) -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError) as error:
        interrupts.check()  # a signal for all of us
        process.join(1)
        raise UserError(
            f"a worker process died (exit code {process.exitcode}). If memory was short, run the "
            "same command again with fewer --workers: what is finished is kept. A Python script "
            'that calls prepare needs the line `if __name__ == "__main__":` around it'
        ) from error


# ------------------------------------------------------------------------- In a worker process

# What a worker says: it has started, bytes and tokens since it last said so, a piece's result, or
# what went wrong.
READY, COUNTED, DONE, FAILED = "ready", "counted", "done", "failed"
# Set by _work.
_job: Job
_main: Connection
_counted = [0, 0]  # bytes and tokens that the main process does not know of


def _work(main: Connection) -> None:
    """Do the pieces that the main process names, until there are no more."""
    global _job, _main
    interrupts.end_with_parent()
    _main = main
    try:
        main.send((READY,))
        _job, work, threads = main.recv()
        os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
        os.environ["RAYON_NUM_THREADS"] = str(threads)
        while (number := main.recv()) is not None:
            try:
                result = work(number)
            except Exception as error:
                main.send((FAILED, _sendable(error)))
                return
            _tell()
            main.send((DONE, result))
    except (EOFError, OSError):
        pass  # the main process has gone


def _sendable(error: Exception) -> Exception:
    """The error as it can go through a pipe, with the traceback that stays here."""
    if not isinstance(error, UserError):
        error.add_note(f"in a worker process: {traceback.format_exc()}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
    return error


def _advance(read: int, tokens: int = 0) -> None:
    _counted[0] += read
    _counted[1] += tokens


def _tell() -> None:
    _main.send((COUNTED, *_counted))
    _counted[:] = 0, 0


def _texts(piece: Piece) -> Iterator[list[str]]:
    """The documents of a piece that are not empty, some at a time."""
    texts: list[str] = []
    characters = 0
    for part in piece:
        for text in part.texts(_advance):
            if text:
                texts.append(text)
                characters += len(text)
            if characters >= _ENCODE_CHARACTERS:
                _tell()
                yield texts
                texts, characters = [], 0
    yield texts


def _piece_hashes(number: int) -> np.ndarray:
    hashes = [text_hash(text) for texts in _texts(_job.pieces[number]) for text in texts]
    return np.sort(np.array(hashes, np.uint64))


def _make_shard(number: int) -> None:
    """Tokenise one piece into its shard of each part."""
    with contextlib.ExitStack() as files:
        writers = {p: _Writer(files, _job, _job.folder / p, number) for p in _job.parts}
        for texts in _texts(_job.pieces[number]):
            tokens = 0
            for text, documents in zip(texts, _job.encode(texts), strict=True):
                writer = writers[_job.part(text)]
                tokens += sum(writer.add(document) for document in documents)
                writer.left_out += not documents
            _advance(0, tokens)
        records = {p: dataclasses.asdict(writer.finish()) for p, writer in writers.items()}
    # The shards are on disk under their names now.
    with new_file(record_path(_job.records, number), overwrite=True) as path:
        path.write_text(json.dumps(records))


class _Writer:
    """A shard on its way to disk."""

    def __init__(self, files: contextlib.ExitStack, job: Job, folder: Path, number: int):
        self._job = job

        def opened(name: str) -> IO[bytes]:
            path = files.enter_context(new_file(folder / name, overwrite=True))
            return files.enter_context(path.open("wb", buffering=1 << 20))

        self._tokens, self._documents = opened(tokens_file(number)), opened(documents_file(number))
        self._weights = opened(weights_file(number)) if job.chat is not None else None
        self._dtype = np.dtype(job.dtype).newbyteorder("<")
        self._hash, self._weights_hash = hashlib.sha256(), hashlib.sha256()
        self._starts = array("q")  # of 64 bits
        self._count = self._text_bytes = 0
        self._largest_id = -1
        self._weighted = self.left_out = 0

    def add(self, document: Encoded) -> int:
        """Append a document; returns the tokens that it took."""
        before, after = self._job.before, self._job.after
        ids = [*before, *document.ids, *after]
        if not ids:
            return 0
        data = np.array(ids, self._dtype).tobytes()
        self._tokens.write(data)
        self._hash.update(data)
        if self._weights is not None:
            assert document.carries is not None
            weights = bytes([*(0 for _ in before), *document.carries, *(0 for _ in after)])
            self._weights.write(weights)
            self._weights_hash.update(weights)
            self._weighted += sum(weights)
        self._starts.append(self._count)
        self._count += len(ids)
        self._text_bytes += len(document.text.encode())
        self._largest_id = max(self._largest_id, max(ids))
        return len(ids)

    def finish(self) -> ShardRecord:
        starts = np.array(self._starts, "<i8").tobytes()
        self._documents.write(starts)
        return ShardRecord(
            tokens=self._count,
            documents=len(self._starts),
            tokens_sha256=self._hash.hexdigest(),
            documents_sha256=hashlib.sha256(starts).hexdigest(),
            weights_sha256=None if self._weights is None else self._weights_hash.hexdigest(),
            text_bytes=self._text_bytes,
            largest_id=self._largest_id,
            weighted_tokens=self._weighted,
            left_out=self.left_out,
        )
