"""Results made by hand: what is written, printed and computed of them."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from rich.table import Table

from chopjax.errors import UserError
from chopjax.models.formats import Form
from chopjax.models.quantized import Quantized
from chopjax.score import results as reports

characters = st.characters()  # halves of surrogate pairs too, as broken documents hold
words = st.text(characters, max_size=12)


def sample(choices: int = 2, metric: str = "acc", **changes: Any) -> dict[str, Any]:
    return {
        "doc_id": 0,
        "arguments": [("question", f" choice {n}") for n in range(choices)],
        "resps": [[(-1.5, True)] for _ in range(choices)],
        "filtered_resps": [(-1.5, True) for _ in range(choices)],
        "target": 1,
        "metrics": [metric],
        "doc_hash": "d",
        "prompt_hash": "p",
        "target_hash": "t",
        metric: 1.0,
        **changes,
    }


def two_tasks() -> dict[str, Any]:
    return {
        "results": {
            "one": {
                "alias": " - one",
                "acc,none": 0.5,
                "acc_stderr,none": 0.03,
                "acc_norm,none": 0.25,
                "acc_norm_stderr,none": "N/A",
            },
            "two": {"exact_match,strict": 0.75, "exact_match_stderr,strict": 0.04},
            "both": {"alias": "both"},
        },
        "n-shot": {"one": 5, "two": 0},
        "n-samples": {"one": {"original": 9, "effective": 7}},
        "samples": {"one": [sample(), sample(4)], "two": [sample(1, "exact_match")]},
        "configs": {"one": {"task": "one"}},
        "chance": {"one": 0.375, "two": None},
    }


def group(**metadata: Any) -> Any:
    return SimpleNamespace(metadata=metadata or None, child_names=["one", "two"])


def cells(table: Table) -> list[list[str]]:
    return [list(row) for row in zip(*(column.cells for column in table.columns), strict=True)]


@hypothesis.given(
    st.lists(st.tuples(words, words, words), max_size=4),
    st.floats(allow_nan=False),
    st.booleans(),
)
@hypothesis.settings(max_examples=50, deadline=None)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[tuple[str, str, str]],
    value: float,
    log_samples: bool,
) -> None:
    folder = tmp_path_factory.mktemp("results") / "new"
    found = two_tasks()
    found["results"]["one"]["acc,none"] = value
    found["samples"]["one"] = [
        sample(doc={"text": doc}, arguments=[(doc, answer)], resps=[[answer]], target=target)
        for doc, answer, target in texts
    ]
    before = copy.deepcopy(found)
    written = reports.write_results(found, folder, log_samples)
    assert found == before
    assert sorted(folder.iterdir()) == sorted(written)
    # Names as the harness's, and the results last.
    names = [path.name for path in written]
    date = names[-1].removeprefix("results_").removesuffix(".json")
    assert ":" not in date
    tasks = ["one", "two"] if log_samples else []
    assert names == [*(f"samples_{task}_{date}.jsonl" for task in tasks), f"results_{date}.json"]
    del before["samples"]
    assert json.loads(written[-1].read_text("utf-8")) == before
    if log_samples:
        lines = written[0].read_bytes().decode().split("\n")
        assert lines.pop() == ""
        assert len(lines) == len(texts)
        for line, (doc, answer, target) in zip(lines, texts, strict=True):
            read = json.loads(line)
            assert read["doc"] == {"text": doc}
            assert read["arguments"] == {"gen_args_0": {"arg_0": doc, "arg_1": answer}}
            assert read["resps"] == [[answer]]
            assert read["filtered_resps"] == [["-1.5", "True"]] * 2
            assert read["target"] == target
            assert read["acc"] == 1.0


def test_numbers_of_numpy_and_what_json_has_not(tmp_path: Path) -> None:
    found = two_tasks()
    found["results"]["one"] = {
        "a": np.float32(0.5),
        "b": np.int64(3),
        "c": np.bool_(True),
        "d": {4},
        "e": Path("x"),
        "f": math.nan,
    }
    (path,) = reports.write_results(found, tmp_path, log_samples=False)
    read = json.loads(path.read_text("utf-8"))["results"]["one"]
    assert math.isnan(read.pop("f"))
    plain = {"a": 0.5, "b": 3, "c": True, "d": [4], "e": "x"}
    assert read == plain
    # Programs that read standard output need not know NaN.
    shown = json.loads(reports.as_json(found), parse_constant=pytest.fail)
    assert shown["results"]["one"] == {**plain, "f": None}
    assert shown.keys() == found.keys() - {"samples", "configs"}


@pytest.mark.parametrize("lost", ["arguments", "resps", "filtered_resps", "target"])
def test_of_a_damaged_sample_nothing_is_written(lost: str, tmp_path: Path) -> None:
    """Its task's file and the results, which say that all is there, do not appear."""
    found = two_tasks()
    del found["samples"]["two"][0][lost]
    with pytest.raises(KeyError, match=lost):
        reports.write_results(found, tmp_path / "new", log_samples=True)
    assert [path.name[:12] for path in (tmp_path / "new").iterdir()] == ["samples_one_"]


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("kept")
    with pytest.raises(UserError, match="taken is a file"):
        reports.write_results(two_tasks(), tmp_path / "taken", log_samples=True)
    assert (tmp_path / "taken").read_text() == "kept"
    assert len(list(tmp_path.iterdir())) == 1


def test_table() -> None:
    found = two_tasks()
    found["results"]["one"]["perplexity,none"] = 123456.0
    assert cells(reports.table(found)) == [
        ["one", "5", "7", "acc", "0.5000", "0.0300", "0.3750"],
        ["", "", "", "acc_norm", "0.2500", "", "0.3750"],
        ["", "", "", "perplexity", "1.2346e+05", "", ""],
        ["two", "0", "", "exact_match (strict)", "0.7500", "0.0400", ""],
    ]


@pytest.mark.parametrize(
    ("without", "name"), [([], "mean of 2"), (["x", "y"], "mean of 2 (without x, y)")]
)
def test_table_of_a_mean(without: list[str], name: str) -> None:
    found = two_tasks()
    del found["results"]["one"]["acc_norm,none"]
    found["chance"]["two"] = 0.125
    reports.add_means(found, {"both": group(mean=True, without=without)})
    last = cells(reports.table(found))[-1]
    error = f"{math.hypot(0.03, 0.04) / 2:.4f}"
    assert last == ["both", "", "", name, "0.6250", error, "0.2500"]


def test_means() -> None:
    found = two_tasks()
    del found["results"]["one"]["acc_norm,none"]
    reports.add_means(found, {"both": group(mean=True)})
    assert found["groups"] == {"both": found["results"]["both"]}
    assert found["results"]["both"] == {
        "alias": "both",
        "mean,none": 0.625,
        "mean_stderr,none": pytest.approx(0.025),
        "mean_of": {"one": "acc", "two": "exact_match"},
        "without": [],
    }
    assert "both" not in found["chance"]  # nobody knows what guessing gives for one of them


def test_a_mean_with_an_unknown_error_has_none() -> None:
    found = two_tasks()
    del found["results"]["one"]["acc_norm,none"]
    del found["results"]["two"]["exact_match_stderr,strict"]
    reports.add_means(found, {"both": group(mean=True)})
    assert found["results"]["both"]["mean_stderr,none"] == "N/A"


@pytest.mark.parametrize("metadata", [{}, {"mean": False}, {"version": 1}])
def test_groups_that_ask_for_no_mean_have_none(metadata: dict[str, Any]) -> None:
    found = two_tasks()
    reports.add_means(found, {"both": group(**metadata)})
    assert found == two_tasks()


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"acc,none": 0.5, "acc_norm,none": 0.5}, "one has 2 metrics"),
        ({"alias": "one", "acc_stderr,none": 0.1}, "one has 0 metrics"),
    ],
)
def test_a_mean_needs_one_metric_of_each_task(metrics: dict[str, Any], message: str) -> None:
    found = two_tasks()
    found["results"]["one"] = metrics
    with pytest.raises(ValueError, match=message):
        reports.add_means(found, {"both": group(mean=True)})


@hypothesis.given(st.lists(st.integers(2, 6), min_size=1, max_size=9))
@hypothesis.settings(max_examples=50, deadline=None)
def test_guessing(choices: list[int]) -> None:
    expected = pytest.approx(statistics.fmean(1 / count for count in choices))
    assert reports.chance([sample(count) for count in choices]) == expected
    # Where a choice is scored with and without the question, it is still one choice.
    for metric in ("acc_mutual_info", "acc_pmi_dc"):
        doubled = [sample(2 * count, metric) for count in choices]
        assert reports.chance(doubled) == expected
    # Something that is no choice, anywhere: the task has no such level.
    for odd in (sample(1), sample(4, "exact_match"), sample(2, "acc_pmi_dc")):
        assert reports.chance([*(sample(count) for count in choices), odd]) is None


def test_guessing_without_samples() -> None:
    assert reports.chance([]) is None


def f1_results(items: list[tuple[int, int]], error: Any) -> dict[str, Any]:
    return {
        "results": {"one": {"f1,none": 0.5, "f1_stderr,none": error}, "two": {"acc,none": 0.5}},
        "samples": {"one": [{"f1": item} for item in items]},
    }


@pytest.mark.parametrize(
    ("items", "before", "after"),
    [
        # Sums 2 and 3 of parts (2, 2), (0, 1), (0, 0): residuals 2/3, -2/3 and 0.
        ([(1, 1), (1, 0), (0, 0)], "N/A", math.sqrt(3 / 2 * 8 / 9) / 3),
        ([(1, 1), (1, 1)], "N/A", 0.0),
        ([(0, 0), (0, 0)], "N/A", "N/A"),  # 0 / 0
        ([(1, 0)], "N/A", "N/A"),  # one document
        ([(1, 1), (1, 0)], 0.07, 0.07),  # the harness has one
    ],
)
def test_errors_of_f1(items: list[tuple[int, int]], before: Any, after: Any) -> None:
    found = f1_results(items, before)
    reports.add_f1_errors(found)
    expected = after if isinstance(after, str) else pytest.approx(after)
    assert found["results"]["one"] == {"f1,none": 0.5, "f1_stderr,none": expected}
    assert found["results"]["two"] == {"acc,none": 0.5}


@pytest.mark.parametrize("weights", [None, "int8"])
def test_a_run_is_described(
    weights: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))  # no git
    params = {"up": Quantized(0, 0, Form("int8", (8,), (8,), 0)) if weights else 0}
    lm: Any = SimpleNamespace(
        loaded=SimpleNamespace(name="tiny"),
        engine=SimpleNamespace(compute=SimpleNamespace(dtype="float32"), params=params),
        get_model_info=lambda: {"model_num_parameters": 7},
    )
    found = two_tasks()
    del found["chance"]
    settings = {"limit": 3}
    prompts = ("be brief", None, False)
    reports.complete(found, lm, settings, prompts, reports.start_tracker())
    assert found["config"] == {
        "model": "chopjax",
        "model_args": {"pretrained": "tiny", "dtype": "float32"}
        | ({"weights": weights} if weights else {}),
        "model_num_parameters": 7,
        "limit": 3,
    }
    assert found["git_hash"] is None
    assert found["chance"] == {"one": 0.375, "two": None}
    hashed = {"one": "dptdpt", "two": "dpt"}
    assert found["task_hashes"] == {
        task: hashlib.sha256(text.encode()).hexdigest() for task, text in hashed.items()
    }
    assert found["model_name"] == "tiny"
    assert found["system_instruction"] == "be brief"
    assert float(found["total_evaluation_time_seconds"]) >= 0
    (path,) = reports.write_results(found, tmp_path / "out", log_samples=False)
    assert json.loads(path.read_text("utf-8"))["config"]["limit"] == 3
