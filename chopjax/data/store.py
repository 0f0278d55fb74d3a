"""The token store: documents as token ids on disk, one after the other.

    STORE/store.json            what is in it, from what, by which tokenizer (TokenStore)
    STORE/tokens-00000.bin      token ids, uint16 or uint32, little-endian, nothing else
    STORE/documents-00000.bin   where each document of that shard starts in it, int64
    STORE/weights-00000.bin     of each token 1 where it carries loss, else 0, uint8; in stores of
                                conversations alone: of any other, all tokens do

The shards in their order are one long stream of tokens. A store lies in a local folder, where it
is mapped into memory, or behind a URL of fsspec (gs://…), where rows are read by range requests.
fsspec and not etils.epath: a batch is hundreds of short ranges of several files, which fsspec asks
for all at once (cat_ranges), where epath has open files alone.

Why not a library's format: a batch is a function of seed and step, so that a resumed run has no
reader's state to restore, and batches come faster than from grain and from datasets
(benchmarks/RESULTS.md).
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import reprlib
from collections.abc import Callable
from dataclasses import MISSING
from typing import Any, get_origin, get_type_hints

import numpy as np

from chopjax.data.array_files import (
    LocalFiles,
    RemoteFiles,
    array_files,
    differing,
    file_sizes,
    file_system,
)
from chopjax.data.text_files import is_known
from chopjax.disk.files import expanded
from chopjax.errors import UserError, listing

STORE = "store.json"
FORMAT = 1
WEIGHTED = 2  # the format where there are weights, which an earlier chopjax would not see
PARTS = ("train", "held_out")  # the stores in a folder of `prepare --held-out`
DTYPES = ("uint16", "uint32")
_SMALL = 1 << 26  # bytes that are read through in a moment


@dataclasses.dataclass(frozen=True)
class Shard:
    """The files of a store that have one number."""

    tokens: int
    documents: int
    tokens_sha256: str
    documents_sha256: str
    weights_sha256: str | None = None


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
    weighted_tokens: int | None = None  # that carry loss; None: there are no weights, all do

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 that says which tokens these are, wherever they lie."""
        hashes = "".join(
            s.tokens_sha256 + s.documents_sha256 + (s.weights_sha256 or "") for s in self.shards
        )
        return hashlib.sha256(f"{self.dtype} {hashes}".encode()).hexdigest()

    def rows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Tokens starts[n]..starts[n]+length-1 of the stream → int32 [N, length].

        No row may reach beyond the last token.
        """
        rows = np.empty((len(starts), length), np.int32)
        self._fill(rows, tokens_file, np.dtype(self.dtype).newbyteorder("<"), starts)
        # A lookup beyond a table is clamped on most devices, and nobody would know.
        if rows.size and not 0 <= rows.min() <= rows.max() <= self.largest_id:
            raise UserError(
                f"{self.path}: damaged: holds a token that is not in 0..{self.largest_id}, what "
                f"{STORE} says; `chopjax prepare --verify {self.path}` names the file"
            )
        return rows

    def weights(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Of the same tokens 1 where they carry loss, else 0 → float32 [N, length]."""
        rows = np.ones((len(starts), length), np.float32)
        if self.weighted_tokens is not None:
            self._fill(rows, weights_file, np.dtype(np.uint8), starts)
            if rows.size and rows.max() > 1:
                raise UserError(
                    f"{self.path}: damaged: a token carries loss {rows.max():.0f} times; `chopjax "
                    f"prepare --verify {self.path}` names the file"
                )
        return rows

    def _fill(
        self, rows: np.ndarray, file: Callable[[int], str], dtype: np.dtype, starts: np.ndarray
    ) -> None:
        """Put numbers starts[n]… of the stream of one kind of file into rows [N, length]."""
        length = rows.shape[1]
        pieces = []  # (row, where in it, shard, start, stop)
        for n, start in enumerate(starts.tolist()):
            shard, done = bisect.bisect_right(self._edges, start) - 1, 0
            while done < length:
                first = start + done - self._edges[shard]
                last = min(first + length - done, self.shards[shard].tokens)
                pieces.append((n, done, shard, first, last))
                done, shard = done + last - first, shard + 1
        ranges = [(file(shard), first, last) for _, _, shard, first, last in pieces]
        for (n, done, *_), read in zip(pieces, self._files.read(ranges, dtype), strict=True):
            rows[n, done : done + len(read)] = read

    def starts(self, start: int, stop: int) -> np.ndarray:
        """Where documents start within start..stop-1 of the stream, int64."""
        first, last = (bisect.bisect_right(self._edges, edge) - 1 for edge in (start, stop - 1))
        parts = []
        for shard in range(first, last + 1):
            documents, edge = self._documents(shard), self._edges[shard]
            begin, end = np.searchsorted(documents, (start - edge, stop - edge))
            parts.append(documents[begin:end] + edge)
        return np.concatenate(parts)

    @functools.cached_property
    def _edges(self) -> list[int]:
        """Where in the stream each shard begins. Of an empty shard and the next one, which begin
        at the same place, bisect_right finds the latter."""
        return [0, *itertools.accumulate(shard.tokens for shard in self.shards[:-1])]

    @functools.cached_property
    def _files(self) -> LocalFiles | RemoteFiles:
        return array_files(self.path)

    def _documents(self, shard: int) -> np.ndarray:
        starts = self._files.whole(documents_file(shard), np.dtype("<i8"))
        if shard not in self._in_order:
            # The first document starts with the shard, and none is empty.
            edges = np.append(starts, self.shards[shard].tokens)
            if edges[0] != 0 or (len(starts) and not (np.diff(edges) > 0).all()):
                raise UserError(
                    f"{self.path}/{documents_file(shard)}: damaged: documents do not start one "
                    f"after the other within {edges[-1]:,} tokens; prepare the store again"
                )
            self._in_order.add(shard)
        return starts

    @functools.cached_property
    def _in_order(self) -> set[int]:
        """Shards whose documents were looked at."""
        return set()


def tokens_file(shard: int) -> str:
    return f"tokens-{shard:05}.bin"


def documents_file(shard: int) -> str:
    return f"documents-{shard:05}.bin"


def weights_file(shard: int) -> str:
    return f"weights-{shard:05}.bin"


def open_store(path: str | os.PathLike[str]) -> TokenStore:
    """Open a store. Raises UserError where there is none, or one whose files are not as it says.

    Sizes are compared always. Of a local store the order of documents, too, and of a small one the
    checksums; of a larger one `verify` compares them.
    """
    name = os.fspath(path)
    name = name.rstrip("/") if "://" in name else str(expanded(name))
    system, folder = file_system(name)
    try:
        text = system.cat_file(f"{folder}/{STORE}")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(_no_store(system, folder, name)) from None
    except OSError as error:
        raise UserError(f"{name}/{STORE}: cannot be read ({error.strerror or error})") from error
    store = read_record(text, name)
    itemsize = np.dtype(store.dtype).itemsize
    wrong = []
    sizes = file_sizes(name)
    for number, shard in enumerate(store.shards):
        expected = {
            tokens_file(number): itemsize * shard.tokens,
            documents_file(number): 8 * shard.documents,
        }
        if shard.weights_sha256 is not None:
            expected[weights_file(number)] = shard.tokens
        for file, size in expected.items():
            if sizes.get(file) != size:
                wrong.append(f"{file}: {sizes.get(file, 'no')} bytes instead of {size}")
    if wrong:
        raise UserError(f"{name}: damaged; prepare it again:\n{listing(wrong, 10)}")
    if "://" not in name:
        if store.num_documents <= _SMALL // 8:
            for number in range(len(store.shards)):
                store._documents(number)
        each = itemsize + (store.weighted_tokens is not None)
        if each * store.num_tokens + 8 * store.num_documents <= _SMALL:
            verify(store)
    return store


def _no_store(system: Any, folder: str, name: str) -> str:
    """What lies there instead, and what to do."""

    def holds(*names: str) -> bool:
        return any(system.isfile(f"{folder}/{file}") for file in names)

    make = f"  chopjax prepare {name} --tokenizer MODEL --output STORE"
    if system.isfile(folder):
        if os.path.basename(folder) == STORE:
            return f"{name}: a file of a token store; give the folder that it lies in"
        if is_known(folder):
            return f"{name}: a text file, and a token store is needed. Make one of it:\n{make}"
        return f"{name}: a file, and the folder of a token store is needed (`chopjax prepare`)"
    if not system.isdir(folder):
        return f"{name}: no such folder (`chopjax prepare` makes a token store)"
    parts = [part for part in PARTS if holds(f"{part}/{STORE}")]
    if parts:
        held = " and ".join(f"{name}/{part}" for part in parts)
        return f"{name}: no token store (`chopjax prepare` makes one); it holds {held}"
    if holds("config.json", "chopjax_folder.json"):
        return f"{name}: a model, and a token store is needed (`chopjax prepare` makes one of text)"
    files = sorted(os.path.basename(file) for file in system.ls(folder, detail=False))
    if any(is_known(file) for file in files):
        return f"{name}: a folder of text, and a token store is needed. Make one of it:\n{make}"
    held = ", ".join(repr(file) for file in files[:5]) or "nothing"
    return f"{name}: no token store (`chopjax prepare` makes one); it holds {held}"


def open_stores(path: str | os.PathLike[str]) -> dict[str, TokenStore]:
    """The store of a folder under the name "", or those of `prepare --held-out` under theirs."""
    system, folder = file_system(os.fspath(path))
    parts = [part for part in PARTS if system.isfile(f"{folder}/{part}/{STORE}")]
    return {part: open_store(f"{os.fspath(path)}/{part}") for part in parts} or {
        "": open_store(path)
    }


def verify(store: TokenStore) -> None:
    """Read all of a store and compare checksums. Raises UserError that names the damaged files."""
    expected = {
        file: sha256
        for number, shard in enumerate(store.shards)
        for file, sha256 in (
            (tokens_file(number), shard.tokens_sha256),
            (documents_file(number), shard.documents_sha256),
            (weights_file(number), shard.weights_sha256),
        )
        if sha256 is not None
    }
    damaged = differing(store.path, expected)
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
    if store.weighted_tokens is not None:
        return {"format": WEIGHTED, **record}
    del record["weighted_tokens"]
    for shard in record["shards"]:
        del shard["weights_sha256"]
    return {"format": FORMAT, **record}


def read_record(text: bytes, name: str) -> TokenStore:
    """What store.json says. Raises UserError that names the field that cannot be."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}/{STORE}: damaged: not JSON ({str(error)[:200]})") from None
    if not isinstance(record, dict):
        raise UserError(f"{name}/{STORE}: damaged: a JSON object is needed")
    version = record.pop("format", None)
    if version not in (FORMAT, WEIGHTED):
        raise UserError(
            f"{name}: a token store of format {_short(version)}; this chopjax reads {FORMAT} and "
            f"{WEIGHTED}"
        )
    problems = mistyped(record, TokenStore, without="path")
    for number, shard in enumerate(record.get("shards") or () if not problems else ()):
        wrong = mistyped(shard, Shard) if isinstance(shard, dict) else [_short(shard)]
        problems += [f"shards[{number}]: {problem}" for problem in wrong]
    if not problems and not all(isinstance(source, dict) for source in record["sources"]):
        problems = ["sources: objects are needed"]
    if not problems:
        shards = tuple(Shard(**shard) for shard in record.pop("shards"))
        sources = tuple(record.pop("sources"))
        store = TokenStore(path=name, shards=shards, sources=sources, **record)
        problems = _impossible(store)
    if problems:
        raise UserError(
            f"{name}/{STORE}: damaged; prepare the store again:\n{listing(problems, 5)}"
        )
    return store


def mistyped(record: dict[str, Any], kind: type, without: str = "") -> list[str]:
    """Fields of a dataclass that are missing, unknown or of another type; what is in tuples, dicts
    and dataclasses is not looked at."""
    types = {name: hint for name, hint in get_type_hints(kind).items() if name != without}
    required = {field.name for field in dataclasses.fields(kind) if field.default is MISSING}
    problems = [f"{_short(name)}: no such field" for name in record if name not in types]
    for name, hint in types.items():
        origin = get_origin(hint)
        nested = origin is dict or dataclasses.is_dataclass(hint)
        wanted = list if origin is tuple else dict if nested else hint
        if name not in record:
            problems += [f"{name}: is missing"] if name in required else []
        elif isinstance(record[name], bool) != (hint is bool) or not isinstance(
            record[name], wanted
        ):
            problems.append(f"{name}: is {_short(record[name])}")
    return problems


def _impossible(store: TokenStore) -> list[str]:
    """What cannot be true of a store that prepare wrote."""
    shards, most = store.shards, np.iinfo(np.int64).max
    if store.dtype not in DTYPES:
        return [f"dtype: is {_short(store.dtype)}, not one of {', '.join(DTYPES)}"]
    tokens, documents = (sum(getattr(s, n) for s in shards) for n in ("tokens", "documents"))
    weighted = store.weighted_tokens
    ids = {"largest_id": store.largest_id, "before": store.before, "after": store.after}
    checks = [
        (
            all(0 <= s.documents <= s.tokens <= most for s in shards),
            "shards: tokens and documents are not numbers that fit",
        ),
        (tokens == store.num_tokens, f"num_tokens: is {store.num_tokens}, of all shards {tokens}"),
        (
            documents == store.num_documents,
            f"num_documents: is {store.num_documents}, of all shards {documents}",
        ),
        (
            all((s.weights_sha256 is None) == (weighted is None) for s in shards),
            "shards: some have weights and some have none",
        ),
        (weighted is None or 0 <= weighted <= tokens, f"weighted_tokens: is {weighted}"),
        (0 <= store.text_bytes <= most, f"text_bytes: is {store.text_bytes}"),
        (
            1 <= store.vocab_size <= np.iinfo(store.dtype).max + 1,
            f"vocab_size: is {store.vocab_size}, with dtype {store.dtype}",
        ),
        *(
            (
                value is None or (name == "largest_id") * -1 <= value < store.vocab_size,
                f"{name}: is {value}, with vocab_size {store.vocab_size}",
            )
            for name, value in ids.items()
        ),
    ]
    return [message[:200] for holds, message in checks if not holds]


def _short(value: Any) -> str:
    return reprlib.repr(value)
