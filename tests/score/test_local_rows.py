"""Rows of JSON lines against datasets' own reader, and the faults that are named by their line."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chopjax.errors import UserError
from chopjax.score.local_rows import check_present, read_rows


def write(folder: Path, rows: list[Any]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_column_of_every_row(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"q": "a", "label": 0},
        {"hint": "b", "label": 1, "choices": {"text": ["x", "y"]}, "q": "c"},
        {"q": None, "choices": {"text": []}, "empty": None},
        {"label": 2.5, "q": "d"},
    ]
    path = write(tmp_path, rows)
    expected = datasets.load_dataset(
        "json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )
    found = read_rows(path)
    assert set(found.column_names) == set(expected.column_names)
    assert found.to_list() == expected.to_list()


VALUES = {
    "text": st.text(st.characters(codec="utf-8"), max_size=5),
    "number": st.integers(-(2**63), 2**63 - 1),
    "flag": st.booleans(),
    "list": st.lists(st.text(st.characters(codec="utf-8"), max_size=3) | st.none(), max_size=3),
}
ROWS = st.lists(
    st.fixed_dictionaries({}, optional={k: v | st.none() for k, v in VALUES.items()}),
    min_size=1,
    max_size=6,
).filter(any)


@given(ROWS)
@settings(max_examples=60, deadline=None)
def test_a_missing_key_is_null_and_nothing_else_changes(rows: list[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with tempfile.TemporaryDirectory() as folder:
        found = read_rows(write(Path(folder), rows)).to_list()
    assert found == [{key: row.get(key) for key in columns} for row in rows]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"a": NaN}', "line 2: NaN is not JSON"),
        (b'{"a": -Infinity}', "line 2: -Infinity is not JSON"),
        (b'{"a": "1"}', "line 2: a is text here and number before"),
        (b'{"a": true}', "line 2: a is true or false here and number before"),
        (b'{"c": [" me", 1]}', "line 2: a list is number here and text before"),
        (b'{"c": "me"}', "line 2: c is text here and a list before"),
        (b'{"o": {"k": [1]}}', "line 2: o.k is a list here and text before"),
        (b'{"a": 18446744073709551616}', "line 2: a whole number of more than 64 bits"),
        (b'{"o": "\\ud800"}', "line 2: .*surrogates not allowed"),
        (b'{"a": ' + b"[" * 100_000, "line 2: "),
        (b"\xff", "line 2: "),
        (b"7", "line 2: not a JSON object"),
    ],
)
def test_a_fault_is_named_by_its_line(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1, "c": ["x"], "o": {"k": "v"}}\n' + line + b"\n")
    with pytest.raises(UserError, match=f"rows.jsonl, {message}"):
        read_rows(path)


def test_nulls_where_an_answer_is_needed(tmp_path: Path) -> None:
    rows = [{"c": ["x"], "s": "a"}, {"c": ["x", None], "s": "b"}, {"s": "b", "c": None}]
    path = write(tmp_path, rows)
    check_present(path, None, ["s"])
    with pytest.raises(UserError, match="line 2: c is missing or has a null in it"):
        check_present(path, None, ["s", "c"])


def test_no_rows(tmp_path: Path) -> None:
    for content in ("", "\n \n"):
        (tmp_path / "rows.jsonl").write_text(content)
        with pytest.raises(UserError, match=r"rows.jsonl: no rows"):
            read_rows(tmp_path / "rows.jsonl")
