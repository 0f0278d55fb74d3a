"""Reports and figures are written over where chopjax wrote them, and nowhere else.

Each kind says so in itself: report.json by its fields, a figure by what it names as its maker.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from chopjax.disk.atomic import new_file
from chopjax.disk.mark import some
from chopjax.errors import UserError

MAKER = "chopjax"
PAGE = "report.html"
FIGURES = (".png", ".svg")
# How a figure's file names its maker: PNG's text chunk, SVG's metadata.
FIGURE_METADATA: dict[str, dict[str, str | None]] = {
    ".png": {"Software": MAKER},
    ".svg": {"Creator": MAKER, "Date": None},
}
_SIGNS = {
    ".png": b"tEXtSoftware\0chopjax",
    ".svg": b"<dc:title>chopjax</dc:title>",
    ".html": b'<meta name="generator" content="chopjax">',
}
_HEAD_BYTES = 4096


def figure_files(names: Iterable[str]) -> list[str]:
    return [name + suffix for name in names for suffix in FIGURES]


def is_ours(path: Path) -> bool:
    """Whether a figure or page was made by chopjax."""
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return _SIGNS[path.suffix] in file.read(_HEAD_BYTES)


def read_report(path: Path, field: str) -> dict[str, Any] | None:
    """report.json with this field in it; None for anything else."""
    if path.is_symlink() or not path.is_file():
        return None
    try:
        report = json.loads(path.read_bytes())
        return report if {"chopjax_version", "settings", field} <= report.keys() else None
    except (OSError, ValueError, AttributeError, RecursionError):
        return None


def write_report_files(workdir: Path, report: Mapping[str, Any], page: str) -> None:
    """report.json and report.html."""
    for name, text in {PAGE: page, "report.json": json.dumps(report, indent=1) + "\n"}.items():
        with new_file(workdir / name, overwrite=True) as path:
            path.write_text(text, encoding="utf-8")


def check_files(workdir: Path, names: Iterable[str], field: str) -> None:
    """Raise UserError where others' files would be written over.

    names: of figures and pages beside report.json. field: one that report.json has.
    """
    report = read_report(workdir / "report.json", field)
    taken = ["report.json"] if os.path.lexists(workdir / "report.json") and not report else []
    # Before report.json named its figures, they did not name their maker.
    if report is None or "figures" in report:
        paths = [workdir / name for name in names]
        taken += [path.name for path in paths if os.path.lexists(path) and not is_ours(path)]
    if taken:
        raise UserError(
            f"{workdir} holds {some(taken)}, which would be written over and which no run of this "
            "kind made; move it away or give another --workdir"
        )
