"""Views of a tensor, read piece by piece: the same values, and no more bytes than are wanted."""

from __future__ import annotations

import math
import os
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chopjax.checkpoint import pieces as room
from chopjax.checkpoint.pieces import pieces
from chopjax.checkpoint.safetensors_file import TensorInfo
from chopjax.checkpoint.shards import Index, joined, overlap, volume, within
from chopjax.errors import UserError

START = 24  # of the tensor's bytes in its file


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pieces") / "file"
    path.write_bytes(np.arange(5000, dtype=np.uint16).tobytes())
    return path


def tensor_in(file: Path, shape: tuple[int, ...]) -> TensorInfo:
    return TensorInfo("w", "BF16", shape, file, START, 2 * math.prod(shape))


@st.composite
def cases(draw: st.DrawFn) -> tuple[tuple[int, ...], list[int], Index]:
    """A shape, an order of its axes, and a part of the array in that order."""
    shape = tuple(draw(st.lists(st.integers(1, 8), min_size=1, max_size=4)))
    order = draw(st.permutations(range(len(shape))))
    part = []
    for axis in order:
        start = draw(st.integers(0, shape[axis] - 1))
        part.append((start, draw(st.integers(start + 1, shape[axis]))))
    return shape, order, tuple(part)


@given(cases(), st.sampled_from([2, 8, 100, 1 << 20]), st.sampled_from([0, 6, 4096]))
def test_the_same_as_the_view(file: Path, case, piece_bytes: int, gap: int):
    shape, order, part = case
    tensor, read = tensor_in(file, shape), []

    def counted(*arguments):
        read.append(os.preadv(*arguments))
        return read[-1]

    mapped = tensor.read()
    view = mapped.transpose(order)[tuple(slice(*bounds) for bounds in part)]
    got = np.zeros(view.shape, np.uint16)
    with (
        mock.patch.multiple(room, PIECE=piece_bytes, GAP=gap),
        mock.patch.object(room, "os", mock.Mock(preadv=counted)),
    ):
        for corner, piece in pieces(tensor, mapped, view):
            assert piece.nbytes <= piece_bytes
            lies = zip(corner, piece.shape, strict=True)
            got[tuple(slice(at, at + size) for at, size in lies)] = piece.view(np.uint16)
    np.testing.assert_array_equal(got, view.view(np.uint16))
    if gap == 0:
        assert sum(read) == view.nbytes
    assert view.nbytes <= sum(read) <= view.nbytes + gap * len(got.reshape(-1))


def test_what_numpy_copies_is_given_back(file: Path):
    tensor = tensor_in(file, (4, 6))
    mapped = tensor.read()
    copied = mapped.T.reshape(24)
    [(corner, piece)] = pieces(tensor, mapped, copied)
    assert (corner, piece is copied) == ((0,), True)


def test_a_file_that_became_shorter(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(bytes(START + 24))
    tensor = tensor_in(path, (3, 4))
    mapped = tensor.read()
    os.truncate(path, START + 10)
    with pytest.raises(UserError, match=f"{path}: ends inside w"):
        list(pieces(tensor, mapped, mapped))


def test_neighbours_are_joined():
    """Four quarters of a plane are one; a corner that lacks leaves two; what is apart stays so."""
    quarters = [((a, a + 2), (b, b + 3)) for a in (0, 2) for b in (0, 3)]
    assert joined(quarters) == [((0, 4), (0, 6))]
    assert sorted(map(volume, joined(quarters[:3]))) == [6, 12]
    apart = [quarters[0], quarters[3], ((0, 2), (6, 7))]
    assert joined(apart) == apart


def test_overlaps():
    assert overlap(((0, 4), (2, 5)), ((3, 9), (0, 3))) == ((3, 4), (2, 3))
    assert overlap(((0, 4),), ((4, 5),)) is None
    assert within(((3, 4), (2, 3)), ((3, 9), (0, 3))) == (slice(0, 1), slice(2, 3))
