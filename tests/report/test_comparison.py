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


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ((3.0, 4.0, 3.25), "Chopping added 1.000 nats per token of document loss; healing took "),
        ((3.0, 4.0, 4.5), "Chopping added 1.000 nats per token of document loss; healing took no"),
        ((3.0, 2.9, 2.8), "Chopping did not raise the document loss (-0.100 nats per token); hea"),
        ((3.0, 3.0, 3.0), "Chopping did not raise the document loss (+0.000 nats per token); hea"),
    ],
)
def test_the_verdict_is_a_sentence_that_holds(losses: tuple[float, ...], said: str) -> None:
    columns = [
        dataclasses.replace(c, document_loss=x) for c, x in zip(COLUMNS, losses, strict=True)
    ]
    verdict = comparison.verdict(columns)
    assert verdict.startswith(said)
    assert not {"nan", "+-", "--"} & set(verdict.split())


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
