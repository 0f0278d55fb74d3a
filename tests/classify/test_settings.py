"""Which layers a call asks for, and settings that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from classify import material

from chopjax.checkpoint.describe import Description, describe
from chopjax.classify.settings import TrainSettings, cells, check, parse_layers
from chopjax.errors import UserError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Description:
    folder = material.write(tmp_path_factory.mktemp("settings"))
    return describe(str(folder / "model"))


def test_layers() -> None:
    assert parse_layers("all, 2,1,48,2", 48) == [1, 2, 48]
    for text in ("0", "49", "", "1,,2", "-1", "half"):
        with pytest.raises(UserError, match="is no number of layers from 1 to 48"):
            parse_layers(text, 48)


def test_cells(model: Description) -> None:
    asked = material.settings(
        Path("x"), layers="1,all", strategies=("first",), methods=("none", "full"), seeds=2
    )
    found = cells(asked, model)
    assert [(c.keep, c.method, c.seed) for c in found] == [
        (keep, method, seed)
        for keep in ((0,), (0, 1, 2, 3))
        for method in ("none", "full")
        for seed in (0, 1)
    ]


def test_a_strategy_by_measure_reads_an_analysis(model: Description, tmp_path: Path) -> None:
    from chopjax.chop.analysis import AnalysisSettings, analyze, write_analysis

    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "The cat sat on the mat."}\n' * 3)
    measures = AnalysisSettings(sequences=2, measures=("similarity",))
    analysis = analyze(model.name, [str(text)], measures)
    write_analysis(tmp_path / "analysis", analysis, lambda *_: [])
    asked = material.settings(
        Path("x"), strategies=("block-influence",), analysis=str(tmp_path / "analysis"), layers="3"
    )
    check(asked)
    influence = analysis["measures"]["influence"]
    (cell,) = cells(asked, model)
    gone = min((1, 2), key=lambda layer: influence[layer])
    assert cell.keep == tuple(layer for layer in range(4) if layer != gone)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"methods": ("fulll",)}, "--method: 'fulll' is not one of .*; did you mean full"),
        ({"heads": ()}, "--head: nothing is named"),
        ({"strategies": ("laco",)}, "--strategy: 'laco' is not one of"),
        ({"strategies": ("taylor",)}, "--strategy taylor .* give --analysis DIR"),
        ({"analysis": "x"}, "--analysis is for strategies that measure"),
        ({"protect": (2, 1)}, "--protect is for strategies that measure"),
        ({"rank": 4}, "--rank is for --method lora"),
        ({"seeds": 0}, "--seeds 0: at least 1"),
        ({"training": TrainSettings(batch_size=0)}, "--batch-size 0: at least 1"),
        ({"learning_rate": -1.0}, "--learning-rate -1: a number above 0"),
        ({"learning_rate": float("nan")}, "--learning-rate nan: a number above 0"),
    ],
)
def test_what_is_wrong_is_said(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check(material.settings(Path("x"), **options))


def test_layers_that_a_strategy_cannot_keep(model: Description) -> None:
    with pytest.raises(UserError, match="'middle' can remove 1 to 2 of 4 layers, not 3"):
        cells(material.settings(Path("x"), strategies=("middle",), layers="1"), model)
