"""Mirrors: which bytes of a remote file are here, whatever happened before."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chopjax.checkpoint.mirror import Mirror, merge, stored, subtract

ranges = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=8)


def points(found) -> set[int]:
    return {i for start, end in found for i in range(start, end)}


@given(ranges)
def test_merge(found):
    merged = merge(found)
    assert points(merged) == points(found)
    edges = [edge for pair in merged for edge in pair]
    assert edges == sorted(set(edges))  # ascending, apart, none empty


@given(st.integers(0, 60), st.integers(0, 60), ranges)
def test_subtract(start, end, held):
    missing = subtract(start, end, merge(held))
    assert points(missing) == points([(start, end)]) - points(held)
    assert missing == merge(missing)


def opened(path, nbytes=1000, etag="a"):
    mirror = Mirror(path, nbytes, etag)
    mirror.open()
    return mirror


def write(mirror, start, end):
    with mirror.path.open("r+b") as file:
        file.seek(start)
        file.write(bytes([7]) * (end - start))
        mirror.record(file, start, end)


def test_ranges_outlive_the_process(tmp_path):
    path = tmp_path / "model.safetensors"
    assert stored(path) is None
    write(opened(path), 100, 200)
    write(opened(path), 150, 300)
    assert path.stat().st_size == 1000
    assert stored(path) == (1000, "a")
    again = opened(path)
    assert again.missing(0, 1000) == [(0, 100), (300, 1000)]
    assert again.missing(120, 280) == []
    assert path.read_bytes()[100:300] == bytes([7]) * 200


@pytest.mark.parametrize(
    "tail", [b"400 5", b"400", b"\xff\x00", b"500 400\n", b"0 1001\n", b"-5 10\n", b"a b\n"]
)
def test_a_torn_or_senseless_line_is_not_believed(tmp_path, tail):
    path = tmp_path / "model.safetensors"
    write(opened(path), 100, 200)
    with (tmp_path / "model.safetensors.ranges").open("ab") as journal:
        journal.write(tail)
    again = opened(path)
    assert again.missing(0, 1000) == [(0, 100), (200, 1000)]
    write(again, 400, 500)  # and what comes after it is
    assert opened(path).missing(300, 600) == [(300, 400), (500, 600)]


@pytest.mark.parametrize("change", ["etag", "size", "no file", "no journal", "truncated file"])
def test_another_file_begins_anew(tmp_path, change):
    path = tmp_path / "model.safetensors"
    write(opened(path), 100, 200)
    if change == "no file":
        path.unlink()
    if change == "no journal":
        (tmp_path / "model.safetensors.ranges").unlink()
    if change == "truncated file":
        os.truncate(path, 150)
    nbytes = 2000 if change == "size" else 1000
    mirror = opened(path, nbytes, "b" if change == "etag" else "a")
    assert mirror.missing(0, nbytes) == [(0, nbytes)]
    assert path.read_bytes() == bytes(nbytes)
    aside = list(tmp_path.glob("model.safetensors.2*"))
    assert len(aside) == (change == "no journal"), "a file that no journal speaks of is not ours"
