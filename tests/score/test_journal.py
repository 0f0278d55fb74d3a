"""Answers survive a kill at any byte; those of other models are not taken for ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from chopjax.errors import UserError
from chopjax.score.journal import Journal, pair_key, prompt_key

IDENTITY = {"model": "m", "dtype": "float32"}


def pair(number: int) -> str:
    return pair_key((np.array([1, number], np.int32), np.array([number], np.int32)))


def write(folder: Path, numbers: range) -> Path:
    journal = Journal(folder, IDENTITY)
    for number in numbers:
        journal.add(pair(number), [-0.1 * number, number % 2 == 0])
    return journal.path


def test_answers_come_back_bit_for_bit(tmp_path: Path) -> None:
    write(tmp_path / "deep", range(5))
    known = Journal(tmp_path / "deep", IDENTITY).lookup([pair(3), pair(9), pair(4)])
    assert known == {0: [-0.1 * 3, False], 2: [-0.1 * 4, True]}
    # The context's end is part of the request.
    joined = pair_key((np.array([1], np.int32), np.array([3, 3], np.int32)))
    assert Journal(tmp_path / "deep", IDENTITY).lookup([joined]) == {}


def test_cut_at_any_byte(tmp_path: Path) -> None:
    path = write(tmp_path, range(4))
    whole = path.read_bytes()
    ends = [at + 1 for at, byte in enumerate(whole) if byte == 10]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        journal = Journal(tmp_path, IDENTITY)
        known = journal.lookup([pair(n) for n in range(4)])
        assert len(known) == max(0, sum(end <= cut for end in ends) - 1)
        for number in range(4):
            if number not in known:
                journal.add(pair(number), [-0.1 * number, number % 2 == 0])
        assert len(Journal(tmp_path, IDENTITY).lookup([pair(n) for n in range(4)])) == 4


def test_damage_in_the_middle_ends_what_is_known(tmp_path: Path) -> None:
    path = write(tmp_path, range(4))
    lines = path.read_bytes().split(b"\n")
    lines[2] = b"\xff\x00 damaged"
    path.write_bytes(b"\n".join(lines))
    assert list(Journal(tmp_path, IDENTITY).lookup([pair(n) for n in range(4)])) == [0]


def test_another_model_starts_anew(tmp_path: Path) -> None:
    path = write(tmp_path, range(4))
    other = Journal(tmp_path, IDENTITY | {"dtype": "bfloat16"})
    assert other.lookup([pair(1)]) == {}
    other.remove()
    assert not other.path.exists()
    assert len(Journal(tmp_path, IDENTITY).lookup([pair(1)])) == 1
    assert path.exists()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        Journal(tmp_path / "file", IDENTITY)


def test_generated_text(tmp_path: Path) -> None:
    journal = Journal(tmp_path, IDENTITY)
    prompt = np.array([1, 2], np.int32)
    key, other = (prompt_key(prompt, {"most": 4, "until": [end]}) for end in ("\n", "Q:"))
    journal.add(key, "two words\nand “quotes”")
    assert Journal(tmp_path, IDENTITY).lookup([key, other]) == {0: "two words\nand “quotes”"}


@pytest.mark.parametrize("content", [b"precious", b"precious\nlines\n", b'{"a": 1}\n'])
def test_a_file_of_its_name_that_is_no_journal_stays(tmp_path, content):
    journal = Journal(tmp_path, {"model": "m"})
    journal.remove()
    journal.path.write_bytes(content)
    with pytest.raises(UserError, match="move it away"):
        Journal(tmp_path, {"model": "m"})
    assert journal.path.read_bytes() == content


@pytest.mark.parametrize("kept", [0, 4])
def test_one_that_was_cut_in_its_first_line_begins_anew(tmp_path, kept):
    journal = Journal(tmp_path, {"model": "m"})
    content = journal.path.read_bytes()
    journal.remove()
    journal.path.write_bytes(content[:kept])
    assert Journal(tmp_path, {"model": "m"}).path.read_bytes() == content
