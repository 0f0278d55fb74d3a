"""The page stands alone and shows text as text."""

from __future__ import annotations

import base64
from html.parser import HTMLParser
from pathlib import Path

from chopjax.report import html


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_page_fetches_nothing_and_is_well_formed(tmp_path: Path) -> None:
    (tmp_path / "a.svg").write_text("<svg>ℓ</svg>")
    text = html.page(
        "layers & <more>",
        [
            html.heading("one <b>"),
            html.paragraph("a < b"),
            html.code("x & y"),
            html.figure(tmp_path / "a.svg", 'what "it" shows'),
            html.table(["a", "b"], [["<i>", "2"]]),
            html.settings({"model.name": "<script>"}),
        ],
    )
    reader = Reader()
    reader.feed(text)
    assert not reader.open
    assert len(reader.sources) == 1
    kind, data = reader.sources[0].split(",")
    assert kind == "data:image/svg+xml;base64"
    assert base64.b64decode(data).decode() == "<svg>ℓ</svg>"
    for raw in ("<script>", "<i>", "<more>", "a < b"):
        assert raw not in text
