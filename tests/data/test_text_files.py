from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from chopjax.data.text_files import TextFile, Unit
from chopjax.errors import UserError

# Whatever a JSON line may hold; half a surrogate pair cannot be written as UTF-8.
TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=20)


def text_file(path: Path, unit: Unit = "file", field: str = "text") -> TextFile:
    return TextFile(str(path), path.stat().st_size, field, unit)


def read(path: Path, target: int = 1 << 20, **options: str) -> list[str]:
    """The documents of a file, read in parts of `target` bytes."""
    file = text_file(path, **options)  # type: ignore[arg-type]
    counted: list[int] = []
    return [t for a, b, _ in file.cuts(target) for t in file.texts(a, b, counted.append)]


def as_jsonl(texts: list[str], ascii_only: bool = False) -> bytes:
    lines = (json.dumps({"id": n, "text": t}, ensure_ascii=ascii_only) for n, t in enumerate(texts))
    return "".join(line + "\n" for line in lines).encode()


@given(texts=TEXTS, target=st.integers(1, 200), ascii_only=st.booleans())
@settings(max_examples=60, deadline=None)
def test_parts_of_json_lines_make_the_whole(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], target: int, ascii_only: bool
) -> None:
    path = tmp_path_factory.mktemp("json") / "a.jsonl"
    path.write_bytes(as_jsonl(texts, ascii_only))
    assert read(path, target) == texts
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))  # the last line without its end
    assert read(path, target) == texts


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_files(tmp_path: Path, suffix: str) -> None:
    chance = random.Random(0)
    texts = [chance.randbytes(500).hex() for _ in range(2000)]
    data = as_jsonl(texts)
    halves = (data[: len(data) // 2], data[len(data) // 2 :])
    compress: Callable[[bytes], bytes] = (
        gzip.compress if suffix == ".gz" else zstandard.ZstdCompressor().compress
    )
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(compress(data))
    assert read(path, 1000) == texts
    path.write_bytes(b"".join(map(compress, halves)))  # two members or frames, as pigz writes
    assert read(path) == texts
    whole = path.read_bytes()
    for cut in (len(whole) - 1, len(whole) // 4):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"a\.jsonl.*damaged or cut off"):
            read(path)
    path.write_bytes(b"not compressed at all")
    with pytest.raises(UserError, match="damaged or cut off"):
        read(path)


def test_zstd_frames_without_a_size_and_with_a_long_window(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.zst"
    parameters = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    path.write_bytes(stream.compress(b"word " * 100_000) + stream.flush())
    assert read(path) == ["word " * 100_000]


def test_units_of_plain_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\ntwo é\n\n \n\nthree\nfour".encode())
    assert read(path) == ["one\r\ntwo é\n\n \n\nthree\nfour"]
    assert read(path, unit="paragraph") == ["one\r\ntwo é", "three\nfour"]
    lines = ["one", "two é", "", " ", "", "three", "four"]
    assert read(path, unit="line") == read(path, 3, unit="line") == lines


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "x"', "not a line of JSON"),
        (b'["x"]', "one JSON object a line is needed, found a list"),
        (b'{"content": "x", "n": 1}', "no text in field 'text'; .*--field .*content"),
        (b'{"text": 3}', "no text in field 'text'.*no field with text"),
        (b'{"text": "caf\xe9"}', "not UTF-8 at byte 13"),
        (b'{"text": "\\ud83d"}', "half of a surrogate pair"),
    ],
)
def test_a_bad_line_is_named_wherever_reading_began(
    tmp_path: Path, line: bytes, message: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(as_jsonl(["fine"] * 6) + line + b"\n" + as_jsonl(["fine"]))
    for target in (1 << 20, 40):
        with pytest.raises(UserError, match=rf"a\.jsonl:7: {message}"):
            read(path, target)
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(UserError, match=rf"a\.jsonl\.gz:7: {message}"):
        read(packed)


def test_a_whole_surrogate_pair_is_a_character(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(rb'{"text": "\ud83d\ude00"}')
    assert read(path) == ["😀"]


def test_blank_lines_and_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\n{"text": "x"}\n  \n\n')
    assert read(path) == ["x"]
    path.write_bytes(b"")
    assert read(path) == []


def test_progress_is_the_bytes_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(as_jsonl([str(n) for n in range(10_000)])))
    counted: list[int] = []
    list(text_file(path).texts(0, 0, counted.append))
    assert sum(counted) == path.stat().st_size
