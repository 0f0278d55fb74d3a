"""Standard output: JSON that every program reads, names as they are."""

from __future__ import annotations

import json

import pytest
from rich.table import Table

from chopjax.report.terminal import console, print_json, show


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
