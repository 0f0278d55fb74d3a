"""`chopjax analyze` and what `chopjax chop` makes of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import transformers

from chopjax import cli
from chopjax.chop.analysis import AnalysisSettings, analyze
from chopjax.chop.configurations import STRATEGIES
from chopjax.chop.importance import MEASURED
from chopjax.keep import parse_keep


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("analysis") / "model"
    checkpoints.write_checkpoint(folder, "llama", num_hidden_layers=5, vocab_size=300)
    checkpoints.write_tokenizer(folder, 300)
    return folder


@pytest.fixture(scope="module")
def text(model: Path) -> Path:
    lines = [f"The {number}. cat sat on the mat number {number * 7}." for number in range(30)]
    path = model.parent / "text.jsonl"
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def analysis(model: Path, text: Path) -> Path:
    out = model.parent / "analysis"
    arguments = ["--data", str(text), "--output", str(out), "--sequences", "6"]
    assert cli.main(["analyze", str(model), *arguments, "--sequence-length", "24"]) == 0
    return out


def test_everything_is_written(analysis: Path) -> None:
    names = {path.name for path in analysis.iterdir()}
    figures = {f"{n}{s}" for n in ("distance", "layers", "choices", "agreement")
               for s in (".png", ".svg")}  # fmt: skip
    assert names == {"analysis.json", "analysis.npz", ".chopjax.json"} | figures
    found = json.loads((analysis / "analysis.json").read_text())
    assert set(found["choices"]) == set(MEASURED) | set(STRATEGIES)
    assert set(found["recommended"]) == {"1", "2", "3"}
    for count, best in found["recommended"].items():
        losses = [c[count]["loss"] for c in found["choices"].values() if count in c]
        assert best["loss"] == min(losses)
        assert len(parse_keep(best["keep"], 5)) == 5 - int(count)
    with np.load(analysis / "analysis.npz") as arrays:
        assert arrays["distance"].shape == (5, 5)
        assert np.isnan(arrays["distance"][4, 4])
        assert arrays["sleb_layers"].shape == (3,)
        np.testing.assert_allclose(arrays["taylor"], found["measures"]["taylor"])


def test_one_out_and_choices_agree(analysis: Path) -> None:
    found = json.loads((analysis / "analysis.json").read_text())
    one = found["choices"]["perplexity"]["1"]
    assert one["loss"] == pytest.approx(found["measures"]["one_out_loss"][int(one["remove"])])
    rounds = found["measures"]["sleb"]
    assert found["choices"]["sleb"]["3"]["loss"] == pytest.approx(rounds[2]["loss"])
    assert rounds[0]["candidates"]["1"] == pytest.approx(found["measures"]["one_out_loss"][1])


def test_choices_are_of_every_depth(model: Path, text: Path) -> None:
    settings = AnalysisSettings(4, 24, measures=("sleb", "choices"), rounds=1)
    found = analyze(str(model), [str(text)], settings)
    assert len(found["measures"]["sleb"]) == 3
    assert set(found["choices"]["sleb"]) == {"1", "2", "3"}


def test_eight_devices_measure_the_same(model: Path, text: Path, analysis: Path) -> None:
    """Batch, parameters and each layer's work split by two each: the mesh may not show."""
    out = model.parent / "sharded"
    flags = ["--data", str(text), "--output", str(out), "--sequences", "6", "--batch-size", "6"]
    flags += ["--sequence-length", "24", "--fsdp", "2", "--tensor", "2"]
    flags += ["--measures", "similarity,taylor,perplexity,sleb"]
    code = (
        "import sys, jax, chopjax.cli\nassert jax.device_count() == 8\nsys.exit(chopjax.cli.main())"
    )
    devices = {"JAX_NUM_CPU_DEVICES": "8"}
    command = [sys.executable, "-c", code, "analyze", str(model), *flags]
    subprocess.run(command, check=True, env=os.environ | devices, timeout=600)
    alone, together = (
        json.loads((folder / "analysis.json").read_text())["measures"] for folder in (analysis, out)
    )
    for name in ("distance", "influence", "cosine_score", "magnitude", "taylor", "one_out_loss"):
        wanted, found = (np.array(m[name], float) for m in (alone, together))
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=2e-6, err_msg=name)
    for one, eight in zip(alone["sleb"], together["sleb"], strict=True):
        assert one["layer"] == eight["layer"]
        assert one["candidates"] == pytest.approx(eight["candidates"], abs=1e-5)


@pytest.mark.parametrize("strategy", MEASURED)
def test_chop_follows_the_analysis(
    model: Path, analysis: Path, tmp_path: Path, strategy: str
) -> None:
    out = tmp_path / "chopped"
    flags = ["--strategy", strategy, "--remove", "2", "--analysis", str(analysis)]
    assert cli.main(["chop", str(model), str(out), *flags]) == 0
    found = json.loads((analysis / "analysis.json").read_text())
    record = json.loads((out / "chopjax.json").read_text())
    kept = parse_keep(found["choices"][strategy]["2"]["keep"], 5)
    assert record["kept_layers"] == list(kept)
    assert record["strategy"] == strategy
    assert record["settings"]["protect"] == {"first": 1, "last": 1}
    assert record["settings"]["analysis"]["model"] == str(model)


def test_an_analysis_of_a_model_of_the_same_size_is_refused_by_name(
    model: Path, analysis: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    checkpoints.write_checkpoint(other, "llama", num_hidden_layers=5, vocab_size=300, seed=1)
    flags = ["--strategy", "block-influence", "--remove", "2", "--analysis", str(analysis)]
    assert cli.main(["chop", str(other), str(tmp_path / "out"), *flags]) == 2
    assert f"another model, {model}: the weights differ" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
    # A copy is the same model, wherever it lies and whoever made the record of it.
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    config = json.loads((copy / "config.json").read_text())
    config |= {"_name_or_path": "x", "transformers_version": "9"}
    (copy / "config.json").write_text(json.dumps(config))
    assert cli.main(["chop", str(copy), str(tmp_path / "out"), *flags]) == 0


def test_chop_measures_on_the_spot(
    model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "chopped"
    flags = ["--strategy", "sleb", "--remove", "1", "--data", str(text), "--json"]
    assert cli.main(["chop", str(model), str(out), *flags]) == 0
    reply = json.loads(capsys.readouterr().out)
    assert len(reply["kept_layers"]) == 4
    assert reply["settings"]["analysis"]["data"] == [str(text)]
    assert reply["settings"]["analysis"]["settings"]["rounds"] == 1, "no deeper than is chopped"
    assert cli.main(["chop", str(model), str(tmp_path / "other"), *flags, "--remove", "4"]) == 2
    said = capsys.readouterr().err
    assert "can remove 1 to 3 of 5 layers" in said
    assert "loading" not in said, "before anything is measured"


@pytest.mark.parametrize(("strategy", "source"), [("average", "analysis"), ("laco", "data")])
def test_merges_are_recorded_and_load_in_transformers(
    model: Path, text: Path, analysis: Path, tmp_path: Path, strategy: str, source: str
) -> None:
    out = tmp_path / "merged"
    flags = ["--strategy", strategy, "--remove", "2", f"--{source}"]
    flags.append(str(analysis if source == "analysis" else text))
    assert cli.main(["chop", str(model), str(out), *flags]) == 0
    record = json.loads((out / "chopjax.json").read_text())
    assert record["strategy"] == strategy
    assert len(record["kept_layers"]) == 3
    merged = record["settings"]["merged"]
    assert {int(base) for base in merged} <= set(record["kept_layers"])
    assert any(len(weights) > 1 for weights in merged.values())
    assert all(sum(weights.values()) == pytest.approx(1) for weights in merged.values())
    loaded = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert loaded.config.num_hidden_layers == 3


MISTAKES: list[tuple[list[str], str]] = [
    (["--measures", "similarity,guess"], "'guess' is not one of"),
    (["--sequence-length", "9999"], "512 positions"),
    (["--protect", "3,2"], "all 5 layers"),
    (["--sequences", "0"], "at least 1"),
    (["--field", "body"], "no text in field 'body'"),
]


@pytest.mark.parametrize(("flags", "message"), MISTAKES)
def test_mistakes_are_said_and_leave_nothing(
    model: Path, text: Path, tmp_path: Path, flags: list[str], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    arguments = ["--data", str(text), "--output", str(out)]
    assert cli.main(["analyze", str(model), *arguments, *flags]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_some_measures_give_some_figures(
    model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(text), "--output", str(tmp_path / "out"), "--sequences", "4"]
    assert cli.main(["analyze", str(model), *arguments, "--measures", "taylor", "--json"]) == 0
    reply: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert list(reply["measures"]) == ["taylor"]
    assert (tmp_path / "out" / "layers.png").exists()
    assert not (tmp_path / "out" / "distance.png").exists()
