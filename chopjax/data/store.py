"""The token store: documents as token ids on disk, one after the other.

    STORE/store.json            what is in it, from what, by which tokenizer (TokenStore)
    STORE/tokens-00000.bin      token ids, uint16 or uint32, little-endian, nothing else
    STORE/documents-00000.bin   where each document of that shard starts in it, int64

The shards in their order are one long stream of tokens. A store lies in a local folder, where it
is mapped into memory, or behind a URL of fsspec (gs://…), where rows are read by range requests.
fsspec and not etils.epath: a batch is hundreds of short ranges of several files, which fsspec asks
for all at once (cat_ranges), where epath has open files alone.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import hashlib
import itertools
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np

from chopjax.errors import UserError, listing
from chopjax.paths import expanded

STORE = "store.json"
FORMAT = 1
PARTS = ("train", "held_out")  # the stores in a folder of `prepare --held-out`
_OPEN_SHARDS = 128  # mapped at once, a file descriptor each


@dataclasses.dataclass(frozen=True)
class Shard:
    """Two files of a store."""

    tokens: int
    documents: int
    tokens_sha256: str
    documents_sha256: str


@dataclasses.dataclass(frozen=True)
class TokenStore:
    """A store that is complete. Reading it is safe from several threads."""

    path: str
    num_tokens: int  # separators included
    num_documents: int
    text_bytes: int  # of the text in UTF-8
    largest_id: int
    tokenizer: str  # its name when the store was made
    tokenizer_fingerprint: str
    vocab_size: int
    dtype: str  # uint16 or uint32
    before: int | None  # the token put before every document …
    after: int | None  # … and after it
    shards: tuple[Shard, ...]
    sources: tuple[dict[str, Any], ...]  # name, size and sha256 of the files it was made from

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 that says which tokens these are, wherever they lie."""
        hashes = "".join(s.tokens_sha256 + s.documents_sha256 for s in self.shards)
        return hashlib.sha256(f"{self.dtype} {hashes}".encode()).hexdigest()

    def rows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Tokens starts[n]..starts[n]+length-1 of the stream → int32 [N, length].

        No row may reach beyond the last token.
        """
        rows = np.empty((len(starts), length), np.int32)
        pieces = []  # (row, where in it, shard, start, stop)
        for n, start in enumerate(starts.tolist()):
            shard, done = bisect.bisect_right(self._edges, start) - 1, 0
            while done < length:
                first = start + done - self._edges[shard]
                last = min(first + length - done, self.shards[shard].tokens)
                pieces.append((n, done, shard, first, last))
                done, shard = done + last - first, shard + 1
        for (n, done, *_), tokens in zip(pieces, self._read(pieces), strict=True):
            rows[n, done : done + len(tokens)] = tokens
        return rows

    def starts(self, start: int, stop: int) -> np.ndarray:
        """Where documents start within start..stop-1 of the stream, int64."""
        first, last = (bisect.bisect_right(self._edges, edge) - 1 for edge in (start, stop - 1))
        found = []
        for shard in range(first, last + 1):
            documents, edge = self._documents(shard), self._edges[shard]
            begin, end = np.searchsorted(documents, (start - edge, stop - edge))
            found.append(documents[begin:end] + edge)
        return np.concatenate(found)

    @functools.cached_property
    def _edges(self) -> list[int]:
        """Where in the stream each shard begins. Of an empty shard and the next one, which begin
        at the same place, bisect_right finds the latter."""
        return [0, *itertools.accumulate(shard.tokens for shard in self.shards[:-1])]

    @functools.cached_property
    def _files(self) -> _LocalFiles | _RemoteFiles:
        return _RemoteFiles(self.path) if "://" in self.path else _LocalFiles(self.path)

    def _read(self, pieces: list[tuple[int, int, int, int, int]]) -> list[np.ndarray]:
        ranges = [(tokens_file(shard), first, last) for _, _, shard, first, last in pieces]
        return self._files.read(ranges, np.dtype(self.dtype).newbyteorder("<"))

    def _documents(self, shard: int) -> np.ndarray:
        return self._files.whole(documents_file(shard), np.dtype("<i8"))


class _LocalFiles:
    """Arrays mapped into memory."""

    def __init__(self, folder: str):
        self._folder = Path(folder)
        self.whole = functools.lru_cache(2 * _OPEN_SHARDS)(self._map)

    def _map(self, name: str, dtype: np.dtype) -> np.ndarray:
        path = self._folder / name
        if not path.stat().st_size:
            return np.empty(0, dtype)  # nothing cannot be mapped
        return np.asarray(np.memmap(path, dtype, mode="r"))

    def read(self, ranges: list[tuple[str, int, int]], dtype: np.dtype) -> list[np.ndarray]:
        return [self.whole(name, dtype)[start:stop] for name, start, stop in ranges]


class _RemoteFiles:
    """Range requests, many at once where the file system can."""

    def __init__(self, url: str):
        self._system, self._folder = fsspec.core.url_to_fs(url)
        self.whole = functools.lru_cache(_OPEN_SHARDS)(self._fetch)

    def _fetch(self, name: str, dtype: np.dtype) -> np.ndarray:
        return np.frombuffer(self._system.cat_file(f"{self._folder}/{name}"), dtype)

    def read(self, ranges: list[tuple[str, int, int]], dtype: np.dtype) -> list[np.ndarray]:
        paths = [f"{self._folder}/{name}" for name, _, _ in ranges]
        starts = [start * dtype.itemsize for _, start, _ in ranges]
        stops = [stop * dtype.itemsize for _, _, stop in ranges]
        found = self._system.cat_ranges(paths, starts, stops, on_error="raise")
        return [np.frombuffer(data, dtype) for data in found]


def tokens_file(shard: int) -> str:
    return f"tokens-{shard:05}.bin"


def documents_file(shard: int) -> str:
    return f"documents-{shard:05}.bin"


def open_store(path: str | os.PathLike[str]) -> TokenStore:
    """Open a store. Raises UserError where there is none, or one whose files are not as it says."""
    name = os.fspath(path)
    name = name.rstrip("/") if "://" in name else str(expanded(name))
    system, folder = _file_system(name)
    try:
        record = json.loads(system.cat_file(f"{folder}/{STORE}"))
    except FileNotFoundError:
        held = [part for part in PARTS if system.isfile(f"{folder}/{part}/{STORE}")]
        hint = f"; it holds {' and '.join(f'{name}/{part}' for part in held)}" if held else ""
        raise UserError(f"{name}: no token store (`chopjax prepare` makes one){hint}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{name}/{STORE}: cannot be read ({error})") from error
    store = _parse(record, name)
    itemsize = np.dtype(store.dtype).itemsize
    wrong = []
    sizes = {os.path.basename(f["name"]): f["size"] for f in system.ls(folder, detail=True)}
    for number, shard in enumerate(store.shards):
        for file, size in (
            (tokens_file(number), itemsize * shard.tokens),
            (documents_file(number), 8 * shard.documents),
        ):
            if sizes.get(file) != size:
                wrong.append(f"{file}: {sizes.get(file, 'no')} bytes instead of {size}")
    if wrong:
        raise UserError(f"{name}: damaged; prepare it again:\n{listing(wrong)}")
    return store


def open_stores(path: str | os.PathLike[str]) -> dict[str, TokenStore]:
    """The store of a folder under the name "", or those of `prepare --held-out` under theirs."""
    system, folder = _file_system(os.fspath(path))
    parts = [part for part in PARTS if system.isfile(f"{folder}/{part}/{STORE}")]
    return {part: open_store(f"{os.fspath(path)}/{part}") for part in parts} or {
        "": open_store(path)
    }


def verify(store: TokenStore) -> None:
    """Read all of a store and compare checksums. Raises UserError that names the damaged files."""
    system, folder = _file_system(store.path)
    expected = {
        file: sha256
        for number, shard in enumerate(store.shards)
        for file, sha256 in (
            (tokens_file(number), shard.tokens_sha256),
            (documents_file(number), shard.documents_sha256),
        )
    }

    def differs(file: str) -> bool:
        with system.open(f"{folder}/{file}", "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() != expected[file]

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        damaged = [f for f, bad in zip(expected, pool.map(differs, expected), strict=True) if bad]
    if damaged:
        raise UserError(
            f"{store.path}: checksums differ; prepare it again with --overwrite:\n"
            + listing(damaged)
        )


def check_fits(store: TokenStore, tokenizer_fingerprint: str | None, vocab_size: int) -> None:
    """Raises UserError unless the store's tokens are those of the model.

    tokenizer_fingerprint: of the model's tokenizer (Tokenizer.fingerprint), None where it has none.
    vocab_size: rows of the model's embedding table.
    """
    if store.largest_id >= vocab_size:
        raise UserError(
            f"{store.path}: holds token {store.largest_id}, the model has only {vocab_size}; "
            f"it was made with the tokenizer of {store.tokenizer}"
        )
    if tokenizer_fingerprint is not None and tokenizer_fingerprint != store.tokenizer_fingerprint:
        raise UserError(
            f"{store.path}: made with another tokenizer, that of {store.tokenizer} "
            f"(fingerprint {store.tokenizer_fingerprint[:12]}, the model's is "
            f"{tokenizer_fingerprint[:12]}); prepare the text with the model's"
        )


def as_record(store: TokenStore) -> dict[str, Any]:
    """What store.json says. Nothing in it depends on when or where the store was made."""
    record = dataclasses.asdict(store)
    del record["path"]
    return {"format": FORMAT, **record}


def _parse(record: Any, name: str) -> TokenStore:
    try:
        version = record.pop("format")
        if version != FORMAT:
            raise UserError(
                f"{name}: a token store of format {version}; this chopjax reads {FORMAT}"
            )
        shards = tuple(Shard(**shard) for shard in record.pop("shards"))
        sources = tuple(record.pop("sources"))
        return TokenStore(path=name, shards=shards, sources=sources, **record)
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{name}/{STORE}: damaged ({error})") from error


def _file_system(name: str) -> tuple[Any, str]:
    try:
        system, folder = fsspec.core.url_to_fs(name)
    except (ImportError, ValueError) as error:
        raise UserError(f"{name}: cannot be opened ({error})") from error
    return system, folder
