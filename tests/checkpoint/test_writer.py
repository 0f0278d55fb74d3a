"""Written files against the reference implementation."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from chopjax.checkpoint import writer
from chopjax.checkpoint.safetensors_file import DTYPES, NAMES, read_header
from chopjax.checkpoint.writer import Tensor, plan_shards, write_safetensors
from chopjax.errors import UserError

ARRAYS = {
    "w": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.arange(5).astype(ml_dtypes.bfloat16),
    "mask": np.array([True, False, True]),
    "h": np.arange(7).astype(np.float16),
    "empty": np.zeros((0, 2), np.float32),
    "scalar": np.array(2.5),
}


def tensor(name: str, data: Any = None) -> Tensor:
    array = ARRAYS[name]
    return Tensor(name, NAMES[array.dtype], array.shape, array if data is None else data)


def read(folder: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= safetensors.numpy.load_file(path)
    return found


def check(folder: Path) -> None:
    found = read(folder)
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()


def test_one_file(tmp_path: Path) -> None:
    files = write_safetensors(tmp_path, map(tensor, ARRAYS))
    assert [path.name for path in files] == ["model.safetensors"]
    check(tmp_path)
    # As transformers wants it, and every tensor aligned to its type in the mapped file.
    with safetensors.safe_open(files[0], "np") as file:
        assert file.metadata() == {"format": "pt"}
    for info in read_header(files[0]).values():
        assert info.start % DTYPES[info.dtype].itemsize == 0


def test_every_kind_of_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    write_safetensors(tmp_path / "a", map(tensor, ARRAYS))
    there = read_header(tmp_path / "a" / "model.safetensors")

    for copy_bytes in (1 << 20, 5):
        monkeypatch.setattr(writer, "COPY_BYTES", copy_bytes)
        monkeypatch.setattr(writer, "BATCH_BYTES", 7)
        out = tmp_path / str(copy_bytes)
        out.mkdir()
        advanced: list[int] = []
        data = {
            "w": there["w"],
            "b": lambda: ARRAYS["b"],
            "mask": lambda: [b"\x01", memoryview(b"\x00"), np.array([1], np.uint8)],
            "h": there["h"],
            "empty": there["empty"],
            "scalar": ARRAYS["scalar"],
        }
        write_safetensors(
            out, [tensor(name, data[name]) for name in ARRAYS], advance=advanced.append
        )
        check(out)
        assert sum(advanced) == sum(array.nbytes for array in ARRAYS.values())


def test_transposed_arrays_are_written_in_their_axes_order(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    write_safetensors(tmp_path, [Tensor("x", "F32", (3, 2), array)])
    assert read(tmp_path)["x"].tolist() == array.tolist()


def test_shards_and_index(tmp_path: Path) -> None:
    files = write_safetensors(tmp_path, map(tensor, ARRAYS), 24, {"format": "pt", "a": "b"})
    check(tmp_path)
    count = len(files)
    assert count > 2
    names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    assert [path.name for path in files] == names
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(a.nbytes for a in ARRAYS.values())
    for name, file in index["weight_map"].items():
        assert name in read_header(tmp_path / file)
    assert index["weight_map"].keys() == ARRAYS.keys()


@given(st.lists(st.integers(0, 30), max_size=20), st.integers(1, 40))
def test_shards_are_bounded_and_keep_the_order(sizes: list[int], limit: int) -> None:
    tensors = [Tensor(str(i), "U8", (size,), list) for i, size in enumerate(sizes)]
    shards = plan_shards(tensors, limit)
    assert [t for shard in shards for t in shard] == tensors
    for shard in shards:
        assert sum(t.nbytes for t in shard) <= limit or len([t for t in shard if t.nbytes]) == 1
    for before, after in itertools.pairwise(shards):
        assert sum(t.nbytes for t in before) + after[0].nbytes > limit


def test_wrong_announcements_are_defects(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two tensors named w"):
        write_safetensors(tmp_path, [tensor("w"), tensor("w")])
    with pytest.raises(ValueError, match="3 bytes, 48 were announced"):
        write_safetensors(tmp_path, [tensor("w", lambda: [b"123"])])
    with pytest.raises(ValueError, match="float16 is not F32"):
        write_safetensors(tmp_path, [tensor("w", ARRAYS["w"].astype(np.float16))])


def test_more_than_the_disk_has_is_refused_before_a_byte_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="are free on that disk"):
        write_safetensors(tmp_path, [Tensor("x", "U8", (1 << 60,), list)])
    assert not list(tmp_path.iterdir())
