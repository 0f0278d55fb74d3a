"""`chopjax generate` beside transformers' generate, and what it refuses."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import torch
import transformers

from chopjax.checkpoint.describe import describe
from chopjax.cli import main
from chopjax.commands import generate as verb
from chopjax.generate.draft import FoundDraft
from chopjax.generate.voice import special_stops
from chopjax.score.model import open_engine

PROMPTS = ["the cat sat", "a bird", "the old tree and the mat " * 3]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generate") / "m"
    checkpoints.write_checkpoint(folder, vocab_size=300, max_position_embeddings=96)
    return checkpoints.write_tokenizer(folder, vocab_size=300)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "p.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS))
    return path


def test_greedy_text_is_that_of_transformers(
    model: Path, prompts: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Alone, with some of its layers as a draft, and with a chopped folder."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    expected = []
    for text in PROMPTS:
        given = tokenizer(text, return_tensors="pt")
        made = theirs.generate(**given, do_sample=False, max_new_tokens=12, pad_token_id=0)
        expected.append(made[0, given["input_ids"].shape[1] :].tolist())
    assert main(["chop", str(model), str(tmp_path / "chop"), "--keep", "0,2"]) == 0
    capsys.readouterr()
    command = ["generate", str(model), "--prompts", str(prompts), "--max-new-tokens", "12"]
    drafts: list[list[str]] = [
        [],
        ["--draft-keep", "0-1", "--draft-length", "3"],
        ["--draft", str(tmp_path / "chop"), "--draft-length", "2"],
        ["--draft-strategy", "middle", "--draft-remove", "1"],
    ]
    for flags in drafts:
        assert main([*command, "--json", *flags]) == 0
        *rows, summary = map(json.loads, capsys.readouterr().out.splitlines())
        assert [row["prompt"] for row in rows] == PROMPTS
        assert [row["tokens"] for row in rows] == expected
        texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in expected]
        assert [row["text"] for row in rows] == texts
        assert summary["prompts"] == 3
        assert summary["tokens"] == sum(map(len, expected))
        assert (summary["draft"] is not None) == bool(flags)
        if flags:
            assert all(row["drafted"] >= row["accepted"] for row in rows)
            assert summary["draft"]["ratio"] > 0


def test_quantized_weights_and_a_draft_in_the_same_format(
    model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["chop", str(model), str(tmp_path / "chop"), "--keep", "0,2"]) == 0
    command = ["generate", str(model), "--prompt", PROMPTS[0], "--max-new-tokens", "9", "--json"]
    quantized, texts = ["--weights", "nf4"], []
    for flags in ([], quantized, [*quantized, "--draft", str(tmp_path / "chop")]):
        capsys.readouterr()
        assert main([*command, *flags]) == 0
        texts.append(json.loads(capsys.readouterr().out.splitlines()[0])["text"])
    assert texts[0] != texts[1] == texts[2]


def test_a_corpus_for_prepare(
    model: Path, prompts: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    output = tmp_path / "texts.jsonl"
    command = ["generate", str(model), "--prompts", str(prompts), "--max-new-tokens", "7"]
    command += ["--temperature", "0.9", "--output", str(output)]
    assert main(command) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert all(row["text"].startswith(text) for row, text in zip(rows, PROMPTS, strict=True))
    assert [path.name for path in tmp_path.iterdir()] == ["texts.jsonl"], "nothing else is left"
    printed = capsys.readouterr()
    assert rows[1]["text"].removeprefix(PROMPTS[1]) in printed.out
    assert "tokens/s" in printed.err
    assert main(command) == 2, "it is there already"
    before = output.read_bytes()
    other = tmp_path / ".texts.jsonl.replies" / "journal-of-another-setting.txt"
    other.parent.mkdir()
    other.write_text("{}\n")
    assert main([*command, "--overwrite"]) == 0
    assert [path.name for path in other.parent.iterdir()] == [other.name]
    assert output.read_bytes() == before, "the same seed"
    store = tmp_path / "tokens"
    assert main(["prepare", str(output), "--tokenizer", str(model), "--output", str(store)]) == 0


def test_drawn_replies_are_kept_for_their_draft(model: Path, tmp_path: Path) -> None:
    """A draft has a say in what is drawn, and none in what is likeliest."""
    loaded, engine = open_engine(str(model), dtype="float32")

    def journal(heat: float, draft: FoundDraft | None, length: str = "auto") -> str:
        args = argparse.Namespace(temperature=heat, draft_length=length)
        return verb._journal(args, tmp_path / "texts.jsonl", loaded, engine, draft).path.name

    copy = shutil.copytree(model, tmp_path / "copy")
    drafts = [
        None,
        FoundDraft("", None, (0,)),
        FoundDraft("", None, (0, 1)),
        FoundDraft("", describe(str(model))),
    ]
    assert len({journal(0.0, draft) for draft in drafts}) == 1
    assert len({journal(1.0, draft) for draft in drafts}) == 4
    assert journal(1.0, drafts[3]) == journal(1.0, FoundDraft("", describe(str(copy))))
    assert journal(1.0, drafts[1]) != journal(1.0, drafts[1], "3")


def test_one_prompt_is_written_as_it_grows(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", str(model), "--prompt", PROMPTS[0], "--max-new-tokens", "20"]
    assert main([*command, "--json"]) == 0
    text = json.loads(capsys.readouterr().out.splitlines()[0])["text"]
    assert main(command) == 0
    assert capsys.readouterr().out == text + "\n"
    stop = text[5:8]
    assert main([*command, "--stop", stop]) == 0
    assert capsys.readouterr().out == text[: text.index(stop)] + "\n"


def test_a_draft_without_a_round(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was not measured has no figure."""
    command = ["generate", str(model), "--prompt", "a", "--max-new-tokens", "1"]
    assert main([*command, "--draft-keep", "0-1", "--json"]) == 0
    draft = json.loads(capsys.readouterr().out.splitlines()[-1])["draft"]
    assert draft["cost"] > 0
    assert draft["ratio"] is draft["acceptance"] is draft["best_length"] is None


def test_a_stop_string_that_is_a_special_token(model: Path) -> None:
    """No text shows it."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    assert special_stops(tokenizer, ["the", tokenizer.eos_token]) == {tokenizer.eos_token_id}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "one of --prompt and --prompts is needed"),
        (["--prompt", "a", "--top-p", "0.5"], "--top-p is for drawing"),
        (["--prompt", "a", "--temperature", "-1"], "--temperature -1.0: 0, or a number from"),
        (["--prompt", "a", "--temperature", "1e-40"], "--temperature 1e-40: 0, or a number from"),
        (["--prompt", "a \udc80"], "--prompt: it is no text in UTF-8"),
        (["--prompt", "a", "--draft-keep", ""], "--draft-keep ''"),
        (["--prompt", "a", "--output", ".", "--overwrite"], "--output . is a folder"),
        (["--prompt", "a", "--output", ""], "--output . is a folder"),
        (["--prompt", "a", "--stop", ""], "--stop: an empty string"),
        (["--prompt", "a", "--overwrite"], "--overwrite is for --output"),
        (["--prompt", "a", "--max-new-tokens", "0"], "--max-new-tokens 0: at least 1"),
        (["--prompt", "a", "--max-new-tokens", "96"], "prompt 1: 1 tokens and --max-new-tokens 96"),
        (["--prompt", "a", "--chat"], "chat template"),
        (["--prompt", "a", "--draft-length", "3"], "--draft-length is for a draft"),
        (["--prompt", "a", "--draft-keep", "0-1", "--draft-length", "0"], "from 1 to 16"),
        (["--prompt", "a", "--draft-keep", "0", "--draft-length", "9" * 5000], "from 1 to 16"),
        (["--prompt", "a", "--draft-keep", "0-1", "--draft", "x"], "one draft at a time"),
        (["--prompt", "a", "--draft-keep", "0-9"], "--draft-keep '0-9': there is no layer 9"),
        (["--prompt", "a", "--draft-strategy", "imput", "--draft-remove", "1"], "input"),
        (["--prompt", "a", "--draft-strategy", "input"], "go together"),
        (["--prompts", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_mistakes(
    flags: list[str], message: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(model), *flags]) == 2
    printed = capsys.readouterr()
    assert message in " ".join(printed.err.split())
    assert not printed.out


def test_a_draft_with_another_tokenizer(
    model: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Is refused before a weight is read."""
    monkeypatch.delattr("chopjax.score.model.load")
    checkpoints.write_checkpoint(tmp_path, vocab_size=300, max_position_embeddings=96)
    checkpoints.write_tokenizer(tmp_path, vocab_size=290)
    assert main(["generate", str(model), "--prompt", "a", "--draft", str(tmp_path)]) == 2
    assert "it has another tokenizer than the model" in capsys.readouterr().err
