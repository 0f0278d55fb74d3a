"""Documents out of files: JSON lines and plain text, as they are or compressed (.gz, .zst).

A path is local or a URL of fsspec (gs://, s3://, memory://).
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import itertools
import json
import reprlib
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, Literal, cast

import fsspec

from chopjax.data.reader import BadExample, Reader
from chopjax.errors import UserError

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
TEXT_SUFFIXES = (".txt", ".text", ".md")
COMPRESSIONS = (".gz", ".zst")
_CHUNK = 1 << 17

Unit = Literal["file", "paragraph", "line"]


class _BadRecord(Exception):
    """What is wrong with a line; the caller knows where it is."""


@dataclasses.dataclass(frozen=True)
class TextFile:
    """One file. `field` names the text of a JSON line, or its messages; in plain text a document is
    a `unit`."""

    name: str  # path or URL
    size: int  # bytes, compressed as they lie
    field: str
    unit: Unit
    read: Reader | None = None  # None: a document is the field's text

    @property
    def files(self) -> list[dict[str, Any]]:
        return [{"name": self.name, "size": self.size}]

    @property
    def is_json(self) -> bool:
        return is_json(self.name)

    def cuts(self, target: int) -> list[tuple[int, int, int]]:
        """(start, stop, size) of parts of about `target` bytes. Only lines of an uncompressed file
        can be found from the middle of it."""
        if self.name.endswith(COMPRESSIONS) or not (self.is_json or self.unit == "line"):
            return [(0, self.size, self.size)]
        edges = [*range(0, self.size, target), self.size]
        return [(a, b, b - a) for a, b in itertools.pairwise(edges)]

    def texts(self, start: int, stop: int, advance: Callable[[int], None]) -> Iterator[str]:
        """The documents whose first byte lies in the part, in order.

        advance: told how many bytes of the file have been read.
        """
        try:
            with open_binary(self.name) as raw:
                stream = _decompress(self.name, _Counted(raw, advance))
                if self.is_json or self.unit == "line":
                    whole = self.name.endswith(COMPRESSIONS)
                    yield from self._from_lines(stream, start, None if whole else stop)
                elif self.unit == "paragraph":
                    yield from _paragraphs(self._from_lines(stream, 0, None))
                else:
                    yield "".join(self._from_lines(stream, 0, None))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{self.name}: damaged or cut off ({error})") from error
        except OSError as error:
            raise UserError(f"{self.name}: cannot be read ({error.strerror or error})") from error

    def _from_lines(self, stream: IO[bytes], start: int, stop: int | None) -> Iterator[str]:
        parse = self._json_text if self.is_json else self._plain_line
        for number, line in enumerate(_lines(stream, start, stop)):
            try:
                text = parse(line.removeprefix(b"\xef\xbb\xbf") if start == number == 0 else line)
            except _BadRecord as error:
                line_number = 1 + number + _lines_before(self.name, start)
                raise UserError(f"{self.name}:{line_number}: {error}") from None
            if text is not None:
                yield text

    def _plain_line(self, line: bytes) -> str:
        text = _utf8(line)
        return text.rstrip("\r\n") if self.unit == "line" else text

    def _json_text(self, line: bytes) -> str | None:
        if not line.strip():
            return None
        try:
            record = json.loads(_utf8(line))
        except (ValueError, RecursionError) as error:
            raise _BadRecord(f"not a line of JSON ({error})") from None
        if not isinstance(record, dict):
            kind = type(record).__name__
            raise _BadRecord(f"one JSON object a line is needed, found a {kind}")
        text = record.get(self.field) if self.read is None else self._read(self.read, record)
        if not isinstance(text, str):
            strings = sorted(name for name, v in record.items() if isinstance(v, str))
            fields = ", ".join(reprlib.repr(name)[1:-1] for name in strings[:20])
            raise _BadRecord(
                f"no text in field {self.field!r}; name another with --field "
                f"(here: {fields or 'no field with text'})"
            )
        if b"\\ud" in line or b"\\uD" in line:
            try:
                text.encode()
            except UnicodeEncodeError:
                raise _BadRecord("half of a surrogate pair is no character") from None
        return text

    def _read(self, read: Reader, record: dict[str, Any]) -> str:
        try:
            return read(record, self.field)
        except BadExample as error:
            raise _BadRecord(str(error)) from None


def open_binary(name: str) -> IO[bytes]:
    """A local file or a URL, for reading and seeking."""
    if "://" not in name:
        return open(name, "rb")
    return cast(IO[bytes], fsspec.open(name, "rb").open())


def _plain_name(name: str) -> str:
    for suffix in COMPRESSIONS:
        name = name.removesuffix(suffix)
    return name


def is_json(name: str) -> bool:
    """Whether the name ends like that of JSON lines."""
    return _plain_name(name).endswith(JSON_SUFFIXES)


def is_known(name: str) -> bool:
    """Whether the name ends like something that can be read."""
    return _plain_name(name).endswith(JSON_SUFFIXES + TEXT_SUFFIXES)


def _lines(stream: IO[bytes], start: int, stop: int | None) -> Iterator[bytes]:
    """The lines whose first byte lies in start..stop-1."""
    position = start
    if start:
        stream.seek(start - 1)
        position = start - 1 + len(stream.readline())
    while stop is None or position < stop:
        line = stream.readline()
        if not line:
            return
        yield line
        position += len(line)


def _paragraphs(lines: Iterator[str]) -> Iterator[str]:
    """Lines up to the next blank one, joined."""
    paragraph: list[str] = []
    for line in lines:
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield "".join(paragraph).rstrip("\r\n")
            paragraph = []
    if paragraph:
        yield "".join(paragraph).rstrip("\r\n")


def _lines_before(name: str, start: int) -> int:
    """Lines that begin before a byte; only counted when there is an error to report."""
    if not start:
        return 0
    count, left = 1, start - 1
    with open_binary(name) as stream:
        while left and (chunk := stream.read(min(left, 1 << 20))):
            count += chunk.count(b"\n")
            left -= len(chunk)
    return count


def _utf8(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise _BadRecord(f"not UTF-8 at byte {error.start} of the line; convert it first") from None


class _Counted(io.RawIOBase):
    """Reads from another stream and says how much."""

    def __init__(self, inner: IO[bytes], advance: Callable[[int], None]):
        self._inner, self._advance = inner, advance

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._inner.seek(offset, whence)

    def readinto(self, buffer: Any) -> int:
        data = self._inner.read(len(buffer))
        buffer[: len(data)] = data
        self._advance(len(data))
        return len(data)


class _Zstandard(io.RawIOBase):
    """Frames one after the other. A file that ends within a frame is an error, which the reader of
    the zstandard package takes for the end."""

    def __init__(self, inner: IO[bytes]):
        import zstandard

        self._error = zstandard.ZstdError
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
        self._inner, self._out = inner, b""
        self._frame: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._out and self._fill():
            pass
        count = min(len(buffer), len(self._out))
        buffer[:count], self._out = self._out[:count], self._out[count:]
        return count

    def _fill(self) -> bool:
        data = self._frame.unused_data if self._frame and self._frame.eof else b""
        if self._frame and self._frame.eof:
            self._frame = None
        data = data or self._inner.read(_CHUNK)
        if not data:
            if self._frame:
                raise EOFError("ends in the middle of a zstd frame")
            return False
        self._frame = self._frame or self._decompressor.decompressobj()
        try:
            self._out = self._frame.decompress(data)
        except self._error as error:
            raise EOFError(str(error)) from None
        return True


def _decompress(name: str, raw: io.RawIOBase) -> IO[bytes]:
    stream = io.BufferedReader(raw, _CHUNK)
    if name.endswith(".gz"):
        return cast(IO[bytes], gzip.GzipFile(fileobj=stream))
    if name.endswith(".zst"):
        return io.BufferedReader(_Zstandard(stream), 1 << 20)
    return stream
