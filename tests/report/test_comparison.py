"""The table at the end: its arithmetic and its renderings."""

from __future__ import annotations

import dataclasses

import pytest
from rich.console import Console

from chopjax.report import comparison
from chopjax.report.comparison import Column

TEXT = {"c4": {"perplexity": 12.345, "convention": "whole"}}
PARENT = Column(
    "parent", 12, 4_000_000, 16_000_000, 3.0, 3.1, 20.0, 1.1, {"t acc": (0.5, 0.02)}, TEXT, 0.02
)
CHOPPED = dataclasses.replace(
    PARENT, name="chopped", layers=6, document_loss=4.0, window_loss=4.2, latency_seconds=0.01
)
HEALED = dataclasses.replace(CHOPPED, name="healed", document_loss=3.25, accuracies={}, texts={})
COLUMNS = (PARENT, CHOPPED, HEALED)


def test_gap_closed_is_a_share_of_what_chopping_added() -> None:
    assert comparison.gap_closed(COLUMNS) == pytest.approx(0.75)
    assert comparison.gap_closed((PARENT, CHOPPED, CHOPPED)) == 0
    worse = dataclasses.replace(HEALED, document_loss=4.5)
    assert comparison.gap_closed((PARENT, CHOPPED, worse)) == pytest.approx(-0.5)


def test_the_sentence_makes_sense_where_chopping_did_no_harm() -> None:
    assert "added 1.000 nats" in comparison.gap_sentence(COLUMNS)
    assert "75% of it" in comparison.gap_sentence(COLUMNS)
    better = dataclasses.replace(CHOPPED, document_loss=2.5)
    assert "%" not in comparison.gap_sentence((PARENT, better, HEALED))
    assert "+0.750 nats" in comparison.gap_sentence((PARENT, better, HEALED))


def test_rows_hold_every_models_figures() -> None:
    rows = {row[0]: row[1:] for row in comparison.rows(COLUMNS)}
    assert rows["layers"] == ["12", "6", "6"]
    assert rows["parameters"] == ["4.00 M"] * 3
    assert rows["t acc"] == ["0.500 ± 0.020", "0.500 ± 0.020", "–"]
    assert rows["document loss, nats/token"] == ["3.0000", "4.0000", "3.2500"]
    assert rows["window loss, nats/token"] == ["3.1000", "4.2000", "4.2000"]
    assert rows["c4, perplexity"] == ["12.35", "12.35", "–"]
    assert rows["speed-up over parent"] == ["1.00x", "2.00x", "2.00x"]


def test_renderings_agree() -> None:
    console = Console(width=120)
    with console.capture() as captured:
        console.print(comparison.rich_table(COLUMNS))
    markdown = comparison.markdown_table(COLUMNS)
    for row in comparison.rows(COLUMNS):
        for cell in row:
            assert cell in captured.get()
            assert cell in markdown
    assert len({line.count("|") for line in markdown.splitlines()}) == 1
