"""Drafts beside plain decoding: what is counted, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import checkpoints
import numpy as np
import pytest

from chopjax.cli import main
from chopjax.data.tokenizer import load_tokenizer
from chopjax.latency.drafts import beginnings, measure_drafts, room
from chopjax.score.drafting import of_layers
from chopjax.score.model import open_engine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """m: a model; text.jsonl: what it goes on with."""
    folder = tmp_path_factory.mktemp("drafts")
    checkpoints.write_checkpoint(folder / "m", vocab_size=300, max_position_embeddings=32)
    checkpoints.write_tokenizer(folder / "m", vocab_size=300)
    rows = [{"text": text} for text in ("the cat sat on a mat", "", "a bird")]
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_what_is_counted(folder: Path) -> None:
    """A draft that is the model itself is always right: with K = 4, five tokens a round."""
    _, engine = open_engine(str(folder / "m"), dtype="float32")
    layers = engine.config.num_layers
    drafts = [of_layers(engine, range(layers)), of_layers(engine, [0])]
    prompts, turns = [np.array(ids) for ids in ([1, 2], [3], [4, 5, 6])], []
    whole, one = measure_drafts(engine, drafts, prompts, 16, 2, 4, lambda: turns.append(1))
    assert len(turns) == 3, "one more than there are batches"
    assert (whole.layers, whole.length, whole.accepted_length, whole.acceptance) == (
        layers,
        4,
        5,
        1,
    )
    assert one.layers == 1
    assert 1 <= one.accepted_length < 5
    assert whole.plain == one.plain
    assert whole.speed_up == whole.tokens_per_second / whole.plain > 0


def test_prompts_are_the_beginnings_of_documents(folder: Path) -> None:
    tokenizer = load_tokenizer(folder / "m")
    whole = tokenizer.encode_batch(["the cat sat", "a bird"])
    found = beginnings(tokenizer, ["the cat sat", "", "a bird", "more"], 2, 4)
    begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    assert [ids.tolist() for ids in found] == [(begin + ids)[:4] for ids in whole]
    assert room(2048, 512) == (512, 128)
    assert room(600, 512) == (472, 128)
    assert room(32, 512) == (16, 16)


def test_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chop", str(folder / "m"), str(tmp_path / "chop"), "--keep", "0,2"]) == 0
    words = ["latency", str(folder / "m"), "--remove", "0", "--rounds", "2", "--length", "8"]
    words += ["--data", str(folder / "text.jsonl"), "--draft-length", "3"]
    words += ["--draft", str(tmp_path / "chop"), "--draft-keep", "0-1"]
    capsys.readouterr()
    assert main([*words, "--json", "--plot", str(tmp_path / "plot")]) == 0
    drafts = json.loads(capsys.readouterr().out)["drafts"]
    assert [one["name"] for one in drafts] == [str(tmp_path / "chop"), "layers 0-1 of 4"]
    assert [one["layers"] for one in drafts] == [2, 2]
    assert drafts[0]["plain"] == drafts[1]["plain"] > 0
    assert (tmp_path / "plot-drafts.svg").exists()
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "accepted length" in printed
    assert "16 tokens behind each of 2 prompts" in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--draft-keep", "0"], "need --data"),
        (["--data", "{text}"], "--data and --draft-length are for a draft"),
        (["--draft-length", "3"], "--data and --draft-length are for a draft"),
        (["{model}2", "--draft-keep", "0", "--data", "{text}"], "are for one MODEL"),
        (["--random", "--draft-keep", "0", "--data", "{text}"], "nothing of random weights"),
        (["--draft-keep", "9", "--data", "{text}"], "--draft-keep '9': there is no layer 9"),
        (["--draft-keep", "0", "--draft-length", "17", "--data", "{text}"], "from 1 to 16"),
        (["--draft-keep", "0,1", "--draft-keep", "0-1", "--data", "{text}"], "same draft twice"),
        (["--draft-keep", "0", "--data", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_mistakes(
    flags: list[str],
    message: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Are found before a weight is read."""
    monkeypatch.delattr("chopjax.latency.models.load")
    words = [word.format(model=folder / "m", text=folder / "text.jsonl") for word in flags]
    assert main(["latency", str(folder / "m"), *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
