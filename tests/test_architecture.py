"""ARCHITECTURE.md names every room, in the order that imports follow."""

from __future__ import annotations

import re

from documents import ROOT
from test_rooms import ROOMS

TEXT = (ROOT / "ARCHITECTURE.md").read_text()


def section(title: str) -> str:
    return re.split(r"^## ", TEXT.partition(f"## {title}\n")[2], flags=re.MULTILINE)[0]


def test_rooms_stand_in_the_order_of_imports() -> None:
    named = re.findall(r"^\| `?(\w+)`? \|", section("Rooms"), flags=re.MULTILINE)
    assert named[1:] == list(ROOMS)  # the first is the table's heading


def test_names_in_the_text_are_names_of_the_code() -> None:
    files = [*(ROOT / "chopjax").rglob("*.py"), ROOT / "tests" / "families.py"]
    source = "\n".join(path.read_text() for path in files)
    for title in ("Where something new goes", "Add a family"):
        names = re.findall(r"`([A-Za-z_]+)(?:\(|`)", section(title))
        assert len(names) > 5
        absent = [name for name in names if not re.search(rf"\b{name}\b", source)]
        assert not absent, f"{title}: {absent}"
