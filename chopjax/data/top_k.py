"""What a teacher predicts for every token of a store: its K likeliest next tokens, beside the
tokens. For who cannot hold teacher and student at once.

    STORE/top_k/top_k.json           what is in it, of which teacher and which tokens (TopK)
    STORE/top_k/ids-00000.bin        [R, T, K] uint16 or uint32, likeliest first
    STORE/top_k/log_probs-00000.bin  [R, T, K] float16, nats, over the whole vocabulary

Both little-endian and nothing else. What the K probabilities lack to one is the tail's.

A row is the window that data/batches.py cuts for training: tokens r·T … r·T + T - 1 of the store.
The teacher has read those of the window before each token and no others (with mask_documents, those
of the same document among them), which is what the student will have read. So the length of
training's sequences and document masking are decided when the teacher is asked.

Axes: N rows asked for, R rows of a shard, T tokens of a row, K likeliest tokens.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from typing import Any

import numpy as np

from chopjax.data.array_files import array_files, differing, file_sizes, file_system
from chopjax.data.store import DTYPES, TokenStore, mistyped
from chopjax.errors import UserError, listing

FOLDER = "top_k"
RECORD = "top_k.json"
FORMAT = 1
LOG_PROBS = np.dtype("<f2")


@dataclasses.dataclass(frozen=True)
class Shard:
    """Two files."""

    rows: int
    ids_sha256: str
    log_probs_sha256: str
    largest_id: int


@dataclasses.dataclass(frozen=True)
class Windows:
    """What a teacher is asked for. Equal ones of equal stores are equal work."""

    store: str  # fingerprint of the tokens
    top_k: int
    sequence_length: int
    mask_documents: bool
    rows: int
    rows_per_shard: int
    dtype: str  # of the ids

    @property
    def shards(self) -> list[range]:
        """The rows of each."""
        edges = range(0, self.rows, self.rows_per_shard)
        return [range(a, min(a + self.rows_per_shard, self.rows)) for a in edges]

    @property
    def bytes_per_row(self) -> int:
        each = np.dtype(self.dtype).itemsize + LOG_PROBS.itemsize
        return self.sequence_length * self.top_k * each


@dataclasses.dataclass(frozen=True)
class TopK:
    """What a teacher said of a store, complete. Reading it is safe from several threads."""

    path: str
    windows: Windows
    teacher: dict[str, Any]  # name, revision, what its weights are told by
    shards: tuple[Shard, ...]

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 that says what the teacher said, wherever it lies."""
        hashes = "".join(shard.ids_sha256 + shard.log_probs_sha256 for shard in self.shards)
        return hashlib.sha256(hashes.encode()).hexdigest()

    @property
    def largest_id(self) -> int:
        return max(shard.largest_id for shard in self.shards)

    def rows(self, row_N: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The first k of each token of some rows: ids int32, log-probabilities float32: [N, T, K].

        Raises UserError for numbers that no teacher gives.
        """
        ids = self._read(ids_file, np.dtype(self.windows.dtype).newbyteorder("<"), row_N)
        log_probs = self._read(log_probs_file, LOG_PROBS, row_N)
        if ids.size and ids.max() > self.largest_id:
            raise self._damaged(f"an id above {self.largest_id}")
        if log_probs.size and not log_probs.max() <= 0:  # NaN is not
            raise self._damaged("what is no log-probability")
        return ids[..., :k].astype(np.int32), log_probs[..., :k].astype(np.float32)

    def _read(self, file: Any, dtype: np.dtype, row_N: np.ndarray) -> np.ndarray:
        shape = self.windows.sequence_length, self.windows.top_k
        size = shape[0] * shape[1]
        shard_N, place_N = np.divmod(row_N, self.windows.rows_per_shard)
        ranges = [
            (file(shard), place * size, (place + 1) * size)
            for shard, place in zip(shard_N.tolist(), place_N.tolist(), strict=True)
        ]
        rows = np.empty((len(row_N), *shape), dtype)
        for row, read in zip(rows, self._files.read(ranges, dtype), strict=True):
            row[:] = read.reshape(shape)
        return rows

    @functools.cached_property
    def _files(self) -> Any:
        return array_files(self.path)

    def _damaged(self, what: str) -> UserError:
        return UserError(
            f"{self.path}: damaged: holds {what}; `chopjax prepare --verify` names the file"
        )


def ids_file(shard: int) -> str:
    return f"ids-{shard:05}.bin"


def log_probs_file(shard: int) -> str:
    return f"log_probs-{shard:05}.bin"


def as_record(top_k: TopK) -> dict[str, Any]:
    """What top_k.json says."""
    record = dataclasses.asdict(top_k)
    del record["path"]
    return {"format": FORMAT, **record}


def find_top_k(store: TokenStore) -> TopK | None:
    """What a teacher said of a store; None where none was asked. Raises UserError where it is not
    as its record says, or of other tokens."""
    path = f"{store.path}/{FOLDER}"
    system, folder = file_system(path)
    try:
        text = system.cat_file(f"{folder}/{RECORD}")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{path}/{RECORD}: cannot be read ({error.strerror or error})") from error
    top_k = _of_record(text, path)
    if top_k.windows.store != store.fingerprint:
        raise UserError(
            f"{path}: what a teacher said of other tokens than this store's; ask it again "
            f"(`chopjax prepare --output {store.path} --teacher MODEL`)"
        )
    sizes, wrong = file_sizes(path), []
    each = top_k.windows.sequence_length * top_k.windows.top_k
    for number, shard in enumerate(top_k.shards):
        for file, itemsize in (
            (ids_file(number), np.dtype(top_k.windows.dtype).itemsize),
            (log_probs_file(number), LOG_PROBS.itemsize),
        ):
            size = shard.rows * each * itemsize
            if sizes.get(file) != size:
                wrong.append(f"{file}: {sizes.get(file, 'no')} bytes instead of {size}")
    if wrong:
        raise UserError(f"{path}: damaged; ask the teacher again:\n{listing(wrong, 10)}")
    return top_k


def _of_record(text: bytes, path: str) -> TopK:
    def damaged(problems: list[str]) -> UserError:
        return UserError(
            f"{path}/{RECORD}: damaged; ask the teacher again:\n{listing(problems, 5)}"
        )

    try:
        said = json.loads(text)
        version = said.pop("format", None)
    except (ValueError, AttributeError, RecursionError):
        raise damaged(["not a JSON object"]) from None
    if version != FORMAT:
        raise UserError(f"{path}: of format {version!r:.40}; this chopjax reads {FORMAT}")
    problems = mistyped(said, TopK, without="path")
    for kind, records in ((Windows, [said.get("windows")]), (Shard, said.get("shards"))):
        for record in records if not problems else ():
            problems += mistyped(record, kind) if isinstance(record, dict) else [f"{record!r:.40}"]
    if problems:
        raise damaged(problems)
    windows = Windows(**said.pop("windows"))
    shards = tuple(Shard(**shard) for shard in said.pop("shards"))
    sizes = windows.top_k, windows.sequence_length, windows.rows, windows.rows_per_shard
    if windows.dtype not in DTYPES or min(sizes) < 1:
        raise damaged([f"windows: {windows}"])
    count = -(-windows.rows // windows.rows_per_shard)
    if len(shards) != count or [s.rows for s in shards] != [len(rows) for rows in windows.shards]:
        raise damaged(["shards: not of the windows"])
    return TopK(path=path, windows=windows, shards=shards, **said)


def open_top_k(store: TokenStore, k: int, sequence_length: int, mask_documents: bool) -> TopK:
    """What a teacher said of a store, for training in such windows. Raises UserError where it was
    asked for others, for fewer tokens than k, or not at all."""
    top_k = find_top_k(store)
    if top_k is None:
        masked = " --mask-documents" if mask_documents else ""
        raise UserError(
            f"{store.path}: no teacher was asked about it (`chopjax prepare --output STORE "
            f"--teacher MODEL --top-k {k} --sequence-length {sequence_length}{masked}`)"
        )
    windows = top_k.windows
    differences = [
        f"{name}: {was} there, {now} in training"
        for name, was, now in (
            ("sequence_length", windows.sequence_length, sequence_length),
            ("mask_documents", windows.mask_documents, mask_documents),
            ("top_k", windows.top_k, max(k, windows.top_k)),
        )
        if was != now
    ]
    if differences:
        raise UserError(
            f"{top_k.path}: asked otherwise ({'; '.join(differences)}); train so, or ask again "
            "(`prepare --teacher --overwrite`)"
        )
    return top_k


def verify(top_k: TopK) -> None:
    """Read all of it and compare checksums. Raises UserError that names the damaged files."""
    expected = {}
    for number, shard in enumerate(top_k.shards):
        expected[ids_file(number)] = shard.ids_sha256
        expected[log_probs_file(number)] = shard.log_probs_sha256
    if damaged := differing(top_k.path, expected):
        raise UserError(
            f"{top_k.path}: checksums differ; ask the teacher again with --overwrite:\n"
            + listing(damaged)
        )
