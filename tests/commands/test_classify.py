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


def test_long_examples_are_left_out_when_asked(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test, long = folder / "test.jsonl", tmp_path / "long.jsonl"
    long.write_text(test.read_text() + json.dumps({"text": "ab" * 60, "label": 1}) + "\n")
    argv = [*words(folder, tmp_path / "out"), "--seeds", "1", "--layers", "1", "--max-tokens", "20"]
    argv[argv.index("--test") + 1] = str(long)
    assert cli.main([*argv, "--json"]) == 0
    results, said = capsys.readouterr()
    assert f"{long}: 1 of 13 examples have more than 20 tokens and are left out" in said
    assert json.loads(results)["tasks"]["toy"]["conditions"]["max_tokens"] == 20
    before = (tmp_path / "out" / "results.json").read_bytes()
    assert cli.main([*argv, "--max-tokens", "21"]) == 2
    assert "max_tokens: was 20, is 21" in capsys.readouterr().err
    assert (tmp_path / "out" / "results.json").read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--template sst", "'sst' is none of sst2"),
        ("--template agnews", "label words that begin with the same token"),
        ("--train BAD", "bad.jsonl:1: label 3: no word of template toy has it"),
        ("--held-out 34", "of the 2 training examples that are left behind 34 held out"),
        ("--layers 1,9", "'9' is no number of layers from 1 to 4"),
        ("--test LONG", "test example 14 (ababab"),
        ("--max-tokens 1", "--max-tokens 1: none of the 36 examples is so short"),
        ("--max-tokens 0", "--max-tokens 0: at least 1 is needed"),
        ("--method prefix", "more than the 76 that there is room for"),
        ("--method lora --targets gates", "'gates' is not one of"),
        ("--output BAD", "bad.jsonl"),
        ("--output MODEL", "model holds a model, and results would stand in it"),
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
    places = {"BAD": bad, "LONG": long, "MODEL": folder / "model"}
    more = [str(places.get(word, word)) for word in flags.split()]
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
