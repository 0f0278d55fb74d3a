"""`chopjax classify` from end to end, and mistakes: said at once, and nothing written."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from classify import material

from chopjax import cli


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return material.write(tmp_path_factory.mktemp("classify"), max_position_embeddings=96)


def words(folder: Path, out: Path) -> list[str]:
    said = f"""classify {folder}/model --train {folder}/train.jsonl --test {folder}/test.jsonl
        --template {folder}/toy.yaml --layers 1,all --method none --output {out}
        --per-class 4 --held-out 9 --max-test 7 --seeds 2"""
    return said.split()


def test_a_grid(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert cli.main([*words(folder, out), "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert len(results["rows"]) == 4
    assert results == json.loads((out / "results.json").read_text())
    assert {path.name for path in out.iterdir() if path.name[0] != "."} == {
        "results.json", "report.html", "accuracy.png", "accuracy.svg",
    }  # fmt: skip
    page = (out / "report.html").read_text()
    again = page.partition("<pre>")[2].partition("</pre>")[0].replace("\\\n", "")
    assert cli.main(shlex.split(again)[1:]) == 0
    shown = capsys.readouterr().out
    assert json.loads((out / "results.json").read_text()) == results
    assert shown.count(" none ") == 2
    assert "100.0%" in shown


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--template sst", "'sst' is none of sst2"),
        ("--template agnews", "label words that begin with the same token"),
        ("--train BAD", "bad.jsonl:1: label 3: no word of template toy has it"),
        ("--held-out 34", "of the 2 training examples that are left behind 34 held out"),
        ("--layers 1,9", "'9' is no number of layers from 1 to 4"),
        ("--test LONG", "test example 14 (ababab"),
        ("--method prefix", "more than the 76 that there is room for"),
        ("--method lora --targets gates", "'gates' is not one of"),
        ("--output BAD", "bad.jsonl"),
    ],
)
def test_mistakes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: str, said: str
) -> None:
    bad, long = tmp_path / "bad.jsonl", tmp_path / "long.jsonl"
    bad.write_text('{"text": "a", "label": 3}\n')
    rows = [{"text": "a", "label": 0}, {"text": "ab" * 60, "label": 1}]
    long.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    more = flags.replace("BAD", str(bad)).replace("LONG", str(long)).split()
    assert cli.main([*words(folder, out), *more]) == 2
    message = capsys.readouterr().err
    assert said in message
    assert not out.exists()


def test_results_that_are_not_ours(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.json").write_text('{"format": 1}')
    assert cli.main(words(folder, tmp_path)) == 2
    assert "not the results of this chopjax's `classify`" in capsys.readouterr().err
    assert (tmp_path / "results.json").read_text() == '{"format": 1}'
