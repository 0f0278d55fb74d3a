from __future__ import annotations

from pathlib import Path

import pytest

from chopjax.chop.measured import Measured

ASKED = {"model": "m", "text": [["text.jsonl", "5a"]]}


def refuse() -> object:
    pytest.fail("measured again")


def test_what_was_found_is_not_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "measured.json"
    first = Measured(path, ASKED)
    assert first.once("a", lambda: [0.1, None]) == [0.1, None]
    first.keep("b", {"1": 1 / 3})
    again = Measured(path, ASKED)
    assert again.once("a", refuse) == [0.1, None]
    assert again.get("b") == {"1": 1 / 3}, "to the last bit"
    assert again.get("c") is None


def test_of_another_text_or_damaged_it_is(tmp_path: Path) -> None:
    path = tmp_path / "measured.json"
    Measured(path, ASKED).keep("a", 1)
    other = Measured(path, ASKED | {"text": [["text.jsonl", "5b"]]})
    assert other.once("a", lambda: 2) == 2
    assert Measured(path, ASKED).once("a", lambda: 3) == 3
    for damage in ("", "[]", '{"asked": {}}', '{"asked": {"model": "m"'):
        path.write_text(damage)
        assert Measured(path, ASKED).once("a", lambda: 4) == 4


def test_nothing_is_kept_without_a_place() -> None:
    assert Measured(None, ASKED).once("a", lambda: 1) == 1
