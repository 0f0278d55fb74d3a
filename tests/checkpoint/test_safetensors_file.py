"""The header parser against the reference implementation, and against every lie."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from chopjax.checkpoint.safetensors_file import DTYPES, open_header, read_header
from chopjax.errors import UserError


def entry(dtype: Any, shape: Any, begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


GOOD = {"a": entry("F32", [2, 3], 0, 24), "b": entry("BF16", [4], 24, 32)}


def write(path: Path, header: Any, nbytes: int = 32) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(nbytes))
    return path


def test_reads_what_the_reference_writes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        name: (rng.standard_normal((3, 5)) * 9).astype(dtype)
        for name, dtype in DTYPES.items()
        if name != "C64"
    }
    arrays["scalar"] = np.array(3, np.float32)
    arrays["empty"] = np.zeros((0, 7), np.float16)
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file(arrays, path, metadata={"format": "np", "clé": "é"})
    header = open_header(path)
    assert header.metadata == {"format": "np", "clé": "é"}
    assert header.tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        read = header.tensors[name].read()
        assert (read.dtype, read.shape) == (array.dtype, array.shape)
        assert read.tobytes() == array.tobytes()
        assert not read.flags.writeable or not read.size


def test_unaligned_tensors_are_read(tmp_path: Path) -> None:
    header = {"a": entry("U8", [1], 0, 1), "b": entry("F32", [2], 1, 9)}
    raw = json.dumps(header).encode()
    data = b"\0" + np.array([1.5, -2], np.float32).tobytes()
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    assert read_header(tmp_path / "x")["b"].read().tolist() == [1.5, -2]


def test_the_good_header_is_good(tmp_path: Path) -> None:
    assert list(read_header(write(tmp_path / "x", GOOD))) == ["a", "b"]


DAMAGE: dict[str, tuple[Any, int, str]] = {
    "truncated data": (GOOD, 31, "truncated"),
    "extra bytes": (GOOD, 40, "8 bytes after the last tensor"),
    "not JSON": (b'{"a": ', 32, "not valid JSON"),
    "not UTF-8": (b"\xff{}", 32, "not valid JSON"),
    "deep": (b"[" * 100_000, 32, "not valid JSON"),
    "a list": (b"[]", 0, "not a JSON object"),
    "same name twice": (
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},%s}'
        % b'"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}',
        2,
        "'a'",
    ),
    "same key twice": (b'{"a":{"dtype":"U8","dtype":"F32"}}', 2, "'dtype'"),
    "unknown dtype": (GOOD | {"b": entry("F4", [4], 24, 32)}, 32, "dtype 'F4'"),
    "dtype no string": (GOOD | {"b": entry(["F32"], [4], 24, 32)}, 32, "b: dtype"),
    "shape against bytes": (GOOD | {"b": entry("BF16", [5], 24, 32)}, 32, "takes 10 bytes"),
    "negative size": (GOOD | {"b": entry("BF16", [-2, -2], 24, 32)}, 32, "b: the shape"),
    "float size": (GOOD | {"b": entry("BF16", [4.0], 24, 32)}, 32, "b: the shape"),
    "true for a size": (GOOD | {"b": entry("BF16", [True, 4], 24, 32)}, 32, "b: the shape"),
    "negative offset": (GOOD | {"b": entry("BF16", [4], -8, 0)}, 32, "b: data_offsets"),
    "offsets reversed": (GOOD | {"b": entry("BF16", [4], 32, 24)}, 32, "say -8"),
    "three offsets": (
        GOOD | {"b": {"dtype": "U8", "shape": [8], "data_offsets": [24, 32, 32]}},
        32,
        "b: data_offsets",
    ),
    "beyond the file": (GOOD | {"b": entry("BF16", [4], 1 << 60, (1 << 60) + 8)}, 32, "truncated"),
    "overlap": (GOOD | {"b": entry("BF16", [4], 20, 28)}, 28, "overlaps"),
    "the same bytes twice": (GOOD | {"c": entry("BF16", [4], 24, 32)}, 32, "overlaps"),
    "hole": (GOOD | {"b": entry("BF16", [4], 28, 36)}, 36, "4 unused bytes"),
    "hole at the start": ({"b": entry("BF16", [4], 24, 32)}, 32, "24 unused bytes"),
    "no offsets": (GOOD | {"b": {"dtype": "BF16", "shape": [4]}}, 32, "b: needs exactly"),
    "extra key": (GOOD | {"b": GOOD["b"] | {"more": 1}}, 32, "b: needs exactly"),
    "entry no object": (GOOD | {"b": 7}, 32, "b: needs exactly"),
    "metadata no strings": (GOOD | {"__metadata__": {"a": 1}}, 32, "__metadata__"),
    "metadata no object": (GOOD | {"__metadata__": ["a"]}, 32, "__metadata__"),
    "terminal escape": (GOOD | {"\x1b[2J": entry("U8", [0], 0, 0)}, 32, "control characters"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(tmp_path: Path, name: str) -> None:
    header, nbytes, message = DAMAGE[name]
    path = write(tmp_path / "model.safetensors", header, nbytes)
    with pytest.raises(UserError) as error:
        read_header(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes long"),
        (b"1234567", "7 bytes long"),
        (struct.pack("<Q", 1000) + b"{}", "truncated"),
        (struct.pack("<Q", 1 << 62), "claim a header"),
        (b"<!DOCTYPE html><html>", "claim a header"),
    ],
)
def test_files_without_a_header(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_header(tmp_path / "x")


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    header = {
        "a": entry("F99", [1], 0, 4),
        "b": entry("F32", [2], 4, 8),
        "c": entry("F32", "no", 8, 12),
    }
    with pytest.raises(UserError) as error:
        read_header(write(tmp_path / "x", header, 12))
    assert all(f"  {name}: " in str(error.value) for name in "abc")


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_any_damage_is_an_error_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever bytes change: a UserError, or a header whose every tensor can be read."""
    path = tmp_path_factory.getbasetemp() / "fuzz"
    write(path, {"__metadata__": {"format": "pt"}} | GOOD)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        tensors = read_header(path)
    except UserError:
        return
    for tensor in tensors.values():
        assert tensor.read().nbytes == tensor.nbytes
