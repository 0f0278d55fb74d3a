"""Standard output: JSON that every program reads, names as they are, tables that fit."""

from __future__ import annotations

import json
import re

import pytest
from rich.table import Table

from chopjax.terminal import console, print_json, show


def test_numbers_that_json_has_not(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": float("nan"), "b": [1.5, float("inf")], "c": (-float("inf"), "NaN")})
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found == {"a": None, "b": [1.5, None], "c": [None, "NaN"]}


def test_names_are_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["run[a]", "half[/b]", "[red]x", ":smile:", "\\[c]"]
    table = Table("name", title="[b]all")
    for name in names:
        table.add_row(name)
        console(soft_wrap=True).print(f"written to {name}")
    show(table)
    out = capsys.readouterr().out
    assert all(out.count(name) == 2 for name in names)
    assert "[b]all" in out


NAMES = [f"a_task_with_a_name_so_long_that_it_folds_{n}" for n in range(3)]
HEADER = ["", *(f"column {n}" for n in range(9))]


def table() -> Table:
    made = Table(*HEADER, box=None)
    for column in made.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for row, name in enumerate(NAMES):
        made.add_row(name, *(f"{row}.{column}123 ± 0.0{column}" for column in range(9)))
    return made


def printed(
    width: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> list[str]:
    monkeypatch.delenv("COLUMNS", raising=False)
    if width is not None:
        monkeypatch.setenv("COLUMNS", str(width))
    show(table())
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_a_wide_table_comes_in_parts_that_fit(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = printed(width, monkeypatch, capsys)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    # Every number is there once, and whole; every column has its name.
    numbers = re.findall(r"\d\.\d123 ± 0\.0\d", text)
    assert sorted(numbers) == sorted(f"{r}.{c}123 ± 0.0{c}" for r in range(3) for c in range(9))
    assert [name for name in HEADER if name and text.count(name) != 1] == []
    parts = text.count("column") and len(re.split(r"\n\s*\n", text))
    assert parts > 1
    beginning = NAMES[0][: max(12, width // 3) - 2]
    assert text.count(beginning) == parts * len(NAMES)


def test_columns_that_belong_together_stay_together(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    show(table(), groups=(1, 3, 3))
    parts = re.split(r"\n\s*\n", capsys.readouterr().out)
    shown = [[int(n) for n in re.findall(r"column (\d)", part)] for part in parts]
    assert shown == [[0], [1, 2, 3], [4, 5, 6], [7, 8]]


def test_long_titles_fold_before_columns_part(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Table("", "a-model-with-a-long-name", "another-model-with-a-long-name", "p", box=None)
    made.columns[1].no_wrap = made.columns[2].no_wrap = True
    made.add_row("task", "0.1", "0.2", "0.3")
    monkeypatch.setenv("COLUMNS", "60")
    show(made)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].split() == ["task", "0.1", "0.2", "0.3"]
    assert max(map(len, lines)) <= 60
    assert "".join(line.split()[0] for line in lines[:2]) == "a-model-with-a-long-name"


@pytest.mark.parametrize("width", [None, 300])
def test_where_there_is_room_a_row_is_a_line(
    width: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = printed(width, monkeypatch, capsys)
    assert len(lines) == 1 + len(NAMES)
    assert all(name in line for name, line in zip(NAMES, lines[1:], strict=True))
