"""Keep lists from measures, and analyses that do not fit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chopjax.chop.importance import (
    ANALYSIS,
    MEASURED,
    Protect,
    choose_measured,
    parse_protect,
    read_analysis,
)
from chopjax.errors import UserError
from chopjax.keep import ranges, removed

MODEL = {"commit": None, "config": "1", "tensors": "2", "sample": "3"}


def analysis(num_layers: int, **measures: Any) -> dict[str, Any]:
    return {
        "format": 1,
        "model": "somewhere",
        "num_layers": num_layers,
        "num_parameters": 1000,
        "measures": measures,
    }


def gone(strategy: str, about: dict[str, Any], remove: int, *protect: int) -> str:
    keep = choose_measured(strategy, about, remove, Protect(*protect))
    assert len(keep) == about["num_layers"] - remove
    return ranges(removed(keep, about["num_layers"]))


def test_block_influence_drops_the_lowest_as_shortgpt_does() -> None:
    """METHODS: for Llama-2-7B, 9 layers, in this order: 27,26,25,28,24,29,23,21,22."""
    order = (27, 26, 25, 28, 24, 29, 23, 21, 22)
    scores = [0.5] * 32
    for place, layer in enumerate(order):
        scores[layer] = 0.01 * (place + 1)
    about = analysis(32, influence=scores)
    for count in range(1, 10):
        keep = choose_measured("block-influence", about, count)
        assert set(range(32)) - set(keep) == set(order[:count])


def test_similarity_takes_the_closest_block_of_each_size() -> None:
    none = None
    table = [
        [0.0, 0.3, 0.4, 0.5],
        [0.2, 0.25, 0.1, none],
        [0.3, 0.2, none, none],
        [0.1, none, none, none],
    ]
    about = analysis(4, distance=table)
    assert gone("similarity", about, 1, 0, 0) == "0"
    assert gone("similarity", about, 1, 1, 0) == "3"
    assert gone("similarity", about, 1, 1, 1) == "1"
    assert gone("similarity", about, 2, 1, 0) == "2-3"
    assert gone("similarity", about, 3, 0, 0) == "1-3"


def test_sleb_takes_the_first_rounds() -> None:
    about = analysis(6, sleb=[{"layer": 3}, {"layer": 1}, {"layer": 4}])
    assert gone("sleb", about, 2) == "1,3"
    with pytest.raises(UserError, match="3 rounds"):
        choose_measured("sleb", about, 4)
    with pytest.raises(UserError, match="protected now"):
        choose_measured("sleb", about, 3, Protect(2, 1))


@given(
    st.lists(st.floats(0, 10), min_size=3, max_size=40),
    st.integers(0, 3),
    st.integers(0, 3),
    st.data(),
)
def test_protected_layers_stay_and_the_least_go(
    scores: list[float], first: int, last: int, data: st.DataObject
) -> None:
    protect = Protect(first, last)
    most = protect.most(len(scores))
    about = analysis(len(scores), taylor=scores)
    if most < 1:
        with pytest.raises(UserError, match="protected"):
            choose_measured("taylor", about, 1, protect)
        return
    count = data.draw(st.integers(1, most))
    keep = choose_measured("taylor", about, count, protect)
    assert list(keep) == sorted(set(keep))
    assert len(keep) == len(scores) - count
    assert protect.layers(len(scores)) <= set(keep)
    free = set(keep) - protect.layers(len(scores))
    out = set(range(len(scores))) - set(keep)
    assert max(scores[layer] for layer in out) <= min((scores[k] for k in free), default=99)


def test_what_is_not_a_number_is_never_chosen() -> None:
    about = analysis(5, taylor=[1.0, None, float("nan"), 9.0, 1.0])
    assert gone("taylor", about, 1) == "3"


def test_a_missing_measure_is_named() -> None:
    with pytest.raises(UserError, match=r"'taylor'.*holds influence"):
        choose_measured("taylor", analysis(4, influence=[1, 2, 3, 4]), 1)


@pytest.mark.parametrize("text", ["1", "a,b", "1,2,3", "-1,2", ""])
def test_protect_takes_two_counts(text: str) -> None:
    with pytest.raises(UserError, match="two counts"):
        parse_protect(text)
    assert parse_protect("4,2") == Protect(4, 2)


def test_an_analysis_of_another_model_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ANALYSIS).write_text(json.dumps(analysis(4)))
    assert read_analysis(tmp_path, 4, 1000, MODEL)["model"] == "somewhere"
    assert "does not say which model" in capsys.readouterr().err
    with pytest.raises(UserError, match="4 layers and 1,000 parameters; the model has 5"):
        read_analysis(tmp_path, 5, 1000, MODEL)
    (tmp_path / ANALYSIS).write_text(json.dumps(analysis(4) | {"format": 99}))
    with pytest.raises(UserError, match="run `analyze` again"):
        read_analysis(tmp_path, 4, 1000, MODEL)
    (tmp_path / ANALYSIS).write_text('{"format"')
    with pytest.raises(UserError, match=r"analysis\.json"):
        read_analysis(tmp_path, 4, 1000, MODEL)
    with pytest.raises(UserError, match="analyze"):
        read_analysis(tmp_path / "nowhere", 4, 1000, MODEL)
    for part, words in {"config": "config.json", "tensors": "tensors", "sample": "weights"}.items():
        seen = MODEL | {part: "other"}
        (tmp_path / ANALYSIS).write_text(json.dumps(analysis(4) | {"fingerprint": seen}))
        with pytest.raises(UserError, match=rf"another model, somewhere: .*{words} differ"):
            read_analysis(tmp_path, 4, 1000, MODEL)
        assert read_analysis(tmp_path, 4, 1000, MODEL | {part: None})  # not known is not other
    seen = MODEL | {"sample": "other", "commit": "c"}
    (tmp_path / ANALYSIS).write_text(json.dumps(analysis(4) | {"fingerprint": seen}))
    assert read_analysis(tmp_path, 4, 1000, MODEL | {"commit": "c"})
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("strategy", MEASURED)
@pytest.mark.parametrize(
    "measure", [None, 1, "x", [], {}, [None] * 3, ["a"] * 4, [[]] * 4, [{"layer": 99}] * 4]
)
def test_a_damaged_measure_is_said(strategy: str, measure: Any) -> None:
    about = analysis(4, **{MEASURED[strategy].measure: measure})
    with pytest.raises(UserError, match=r"damaged|rounds of SLEB"):
        choose_measured(strategy, about, 2)


def test_choosing_by_an_analysis_needs_no_jax() -> None:
    code = (
        "import sys, chopjax.chop.importance\n"
        "assert not {'jax', 'flax', 'transformers', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "similarity" in MEASURED


@pytest.mark.parametrize("text", ["", "1", "1,1,1", "-1,0", "1.0,1", "a,b", "²,1", f"1,{9:09999}"])
def test_protect_that_is_no_pair_of_counts(text: str) -> None:
    with pytest.raises(UserError, match="two counts are needed"):
        parse_protect(text)


@given(st.integers(1, 9), st.integers(0, 12), st.integers(0, 12))
def test_one_layer_stays_whatever_is_protected(layers: int, first: int, last: int) -> None:
    protect = Protect(first, last)
    most = protect.most(layers)
    assert most <= layers - 1
    about = analysis(layers, influence=[0.5] * layers)
    for count in range(1, most + 1):
        assert choose_measured("block-influence", about, count, protect)
    with pytest.raises(UserError, match=rf"can remove 1 to {most} of"):
        choose_measured("block-influence", about, most + 1, protect)
