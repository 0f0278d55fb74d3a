"""What the user calls INPUT, as sources of documents, and their division into pieces of work."""

from __future__ import annotations

import collections
import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from chopjax.checkpoint.source import CONFIG, FOLDER_MARK, INDEX, SINGLE
from chopjax.data import huggingface_split, tfds_split
from chopjax.data.array_files import file_system
from chopjax.data.reader import Reader
from chopjax.data.store import PARTS, STORE
from chopjax.data.text_files import (
    COMPRESSIONS,
    JSON_SUFFIXES,
    TEXT_SUFFIXES,
    TextFile,
    Unit,
    is_json,
    is_known,
)
from chopjax.errors import UserError, listing

# A piece becomes a shard of the store. Few, so that a store is few files; many, so that workers
# share the work evenly and a killed run loses little.
MIN_PIECE_BYTES = 1 << 22
MAX_PIECES = 256


class Source(Protocol):
    """Documents in a fixed order, found again from the middle. Can be sent to other processes."""

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int | None:
        """Bytes, None where nobody knows."""

    @property
    def files(self) -> list[dict[str, Any]]:
        """What it is made of: {"name", "size", …} of each file."""

    def cuts(self, target: int) -> list[tuple[int, int, int]]:
        """(start, stop, bytes) of parts that together are the whole, of about `target` bytes."""

    def texts(self, start: int, stop: int, advance: Callable[[int], None]) -> Iterator[str]:
        """The documents of a part; `advance` is told of bytes read."""


@dataclasses.dataclass(frozen=True)
class Part:
    """Some of a source."""

    source: Source
    start: int
    stop: int
    size: int  # bytes, about

    def texts(self, advance: Callable[[int], None]) -> Iterator[str]:
        return self.source.texts(self.start, self.stop, advance)


Piece = tuple[Part, ...]


def find_sources(
    inputs: Sequence[str], field: str = "text", unit: Unit = "file", read: Reader | None = None
) -> list[Source]:
    """The sources of all inputs, in the order given; files of a folder or pattern by name.

    An input is a file, a folder, a pattern (`part-*.jsonl.zst`), a URL (`gs://…`),
    `tfds:NAME[/CONFIG][:SPLIT]` or `hf:NAME[/CONFIG][:SPLIT]`. read: makes a document of an example
    with fields, which plain text has none of.
    Raises UserError where one leads to nothing, cannot be read, or two lead to the same file.
    """
    sources: list[Source] = []
    for name in inputs:
        if name.startswith(("tfds:", "hf:")) and os.path.exists(name):
            raise UserError(f"{name}: the name of a data set and of a file; write ./{name} for it")
        if name.startswith("tfds:"):
            sources.append(tfds_split.open_split(name.removeprefix("tfds:"), field, read))
        elif name.startswith("hf:"):
            sources.append(huggingface_split.open_split(name.removeprefix("hf:"), field, read))
        else:
            sources.extend(_files(name, field, unit, read))
    if not sources:
        raise UserError("no input; name a file, a folder, tfds:NAME or hf:NAME")
    names = collections.Counter(file["name"] for source in sources for file in source.files)
    if twice := [name for name, times in names.items() if times > 1]:
        raise UserError(f"the same input twice:\n{listing(twice)}")
    return sources


def pieces(sources: Sequence[Source]) -> list[Piece]:
    """Divide sources into pieces of about the same size. Depends on the sources alone, so that the
    store is the same whatever the number of workers."""
    total = sum(_nominal_size(source) for source in sources)
    target = max(MIN_PIECE_BYTES, -(-total // MAX_PIECES))
    result: list[Piece] = []
    piece: list[Part] = []
    filled = 0
    for source in sources:
        for start, stop, size in source.cuts(target):
            piece.append(Part(source, start, stop, size))
            filled += size
            if filled >= target:
                result.append(tuple(piece))
                piece, filled = [], 0
    return [*result, tuple(piece)] if piece else result


def read_documents(
    sources: Sequence[Source], advance: Callable[[int], None] = lambda nbytes: None
) -> Iterator[str]:
    """All documents, in order; `advance` is told of bytes read."""
    for piece in pieces(sources):
        for part in piece:
            yield from part.texts(advance)


def _nominal_size(source: Source) -> int:
    return source.size if source.size is not None else sum(b for _, _, b in source.cuts(1))


def _files(name: str, field: str, unit: Unit, read: Reader | None) -> Iterator[TextFile]:
    local = "://" not in name
    system, path = file_system(name)
    try:
        if local and (what := _something_else(path)):
            raise UserError(f"{name}: {what}, and text is needed here")
        if system.isfile(path):
            paths = [path]
        elif system.isdir(path):
            paths = [p for p in system.find(path) if is_known(p) and (is_json(p) or read is None)]
        else:
            paths = [p for p in system.glob(path) if system.isfile(p)]
    except (ImportError, ValueError, OSError, re.error) as error:
        raise UserError(f"{name}: cannot be opened ({error})") from error
    suffixes = JSON_SUFFIXES if read else (*JSON_SUFFIXES, *TEXT_SUFFIXES)
    kinds = " ".join(suffixes) + ", also with " + " ".join(COMPRESSIONS)
    if not paths:
        what = f"no file in it ends in {kinds}" if system.isdir(path) else "no such file or folder"
        raise UserError(f"{name}: {what}")
    for path in sorted(paths):
        if not is_known(path) or (read and not is_json(path)):
            raise UserError(f"{path}: not a name that says how to read it ({kinds})")
        url = path if local else system.unstrip_protocol(path)
        size = system.size(path)
        if not size and path.endswith(COMPRESSIONS):
            raise UserError(
                f"{path}: 0 bytes, where even compressed nothing has some: it was cut off; "
                "fetch or compress it again, or delete it"
            )
        yield TextFile(url, size, field, unit, read)


def _something_else(path: str) -> str | None:
    """What a folder is that holds files with known endings and is no folder of text."""

    def holds(*names: str) -> bool:
        return any(os.path.isfile(os.path.join(path, name)) for name in names)

    if holds(STORE, *(f"{part}/{STORE}" for part in PARTS)):
        return "a token store (`chopjax prepare` made it)"
    if holds(FOLDER_MARK):
        return "a folder of chopjax's own, of `import` or `train`"
    if holds(CONFIG) and holds(SINGLE, INDEX, "tokenizer.json", "tokenizer_config.json"):
        return "a model"
    return None
