"""Tables and curves of a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chopjax.report import sweep


def row(strategy: str, remove: int, loss: float, healed: bool = False, seed: int = 0) -> Any:
    return {
        "strategy": strategy,
        "remove": remove,
        "keep": "0-7" if strategy == "parent" else "0",
        "healed": healed,
        "seed": seed,
        "loss": loss,
        "perplexity": 2 * loss,
        "loss_over_log_vocabulary": loss / 4,
        "tokens": 1000,
        "convention": "mean over tokens",
        "accuracy": {"piqa": [0.5 + loss / 100, 0.01], "copa": [0.6, None]},
        "chance": {"piqa": 0.5, "copa": None},
    }


ROWS = [
    row("parent", 0, 2.0),
    row("input", 2, 3.0),
    row("input", 4, 4.0),
    row("sleb", 4, 3.5),
    row("sleb", 4, 3.7, seed=1),
    row("sleb", 4, 2.5, healed=True),
]
SETTINGS = {
    "model": "somewhere/model",
    "text": {"held_out": "h.jsonl", "train": "t.jsonl"},
    "heal": {"total_steps": 10, "data": {"batch_size": 2, "sequence_length": 3}},
}


@pytest.fixture
def report(tmp_path: Path) -> dict[str, Any]:
    return sweep.write_report(tmp_path, SETTINGS, ROWS, "chopjax sweep --config <x>")


def test_table_has_means_and_spreads_over_seeds(report: dict[str, Any]) -> None:
    header, body = sweep.table(report, "loss", "{:.2f}")
    assert header == ["strategy", "2 of 8 removed", "4 of 8 removed", "4 of 8 removed, healed"]
    assert body == [
        ["parent", "2.00", "2.00", "2.00"],
        ["input", "3.00", "4.00", "–"],
        ["sleb", "–", "3.60 ± 0.14", "2.50"],
    ]


def test_curves_show_parent_chance_and_both_states(report: dict[str, Any]) -> None:
    loss = sweep.losses(report)
    unhealed, healed = loss.axes
    assert unhealed.get_title() == "not healed"
    assert [line.get_label() for line in healed.get_lines()][-1] == "parent"
    accuracy = sweep.accuracies(report)
    levels = {
        line.get_label(): line.get_ydata()[0]
        for line in accuracy.axes[0].get_lines()
        if not line.get_label().startswith("_")
    }
    assert levels["chance"] == 0.5
    assert levels["parent"] == pytest.approx((0.52 + 0.6) / 2)


def test_everything_is_in_one_file(report: dict[str, Any], tmp_path: Path) -> None:
    text = (tmp_path / "report.html").read_text()
    assert text.count("data:image/svg+xml") == 2
    assert "chopjax sweep --config &lt;x&gt;" in text
    assert "60 tokens of t.jsonl" in text
    assert (tmp_path / "loss.png").exists()
    assert report["num_layers"] == 8
