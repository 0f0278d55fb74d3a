"""Perplexity against figures of transformers, and its windows against the harness's."""

from __future__ import annotations

import json
import math
from pathlib import Path

import checkpoints
import hypothesis
import hypothesis.strategies as st
import pytest
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from chopjax.cli import main
from chopjax.data.tokenizer import load_tokenizer
from chopjax.errors import UserError
from chopjax.score.journal import Journal
from chopjax.score.model import open_engine
from chopjax.score.perplexity import document_losses, perplexity, read_texts, windows


@hypothesis.given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(1, 20))
def test_windows_are_those_of_the_harness(ids: list[int], length: int) -> None:
    theirs = get_rolling_token_windows(ids[1:], ids[0], length, context_len=1)
    expected = [tuple(map(list, make_disjoint_window(pair))) for pair in theirs]
    assert [(list(context), list(after)) for context, after in windows(ids, length)] == expected


@pytest.mark.parametrize(
    "name", [pytest.param("mix-llama-12l", marks=pytest.mark.thorough), "tinystories-656k"]
)
def test_published_figures(name: str, shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """METRICS.json: BOS prepended, first 512 ids, mean over all predicted tokens."""
    folder = shared / "models" / name
    metrics = json.loads((folder / "METRICS.json").read_text())
    data = str(shared / "corpora" / "tinystories.heldout.jsonl")
    code = main(["perplexity", str(folder), "--data", data, "--truncate", "--json"])
    assert code == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens"] == metrics["predicted_tokens"]
    assert found["nats_per_token"] == pytest.approx(metrics["mean_ce_nats_per_token"], abs=1e-5)
    assert found["perplexity"] == pytest.approx(metrics["perplexity"], rel=1e-5)
    assert found["documents"] == 100


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    checkpoints.write_checkpoint(folder, "llama", vocab_size=300, max_position_embeddings=32)
    return checkpoints.write_tokenizer(folder, vocab_size=300)


def test_a_journal_remembers_documents(tiny: Path, tmp_path: Path) -> None:
    """What was read before a kill is not read again; `most` ends with the document that has it."""
    texts = ["the cat sat on the mat. " * 9, "a bird", "the old tree"]
    _, engine = open_engine(str(tiny))
    tokenizer = load_tokenizer(tiny)
    journal = Journal(tmp_path, {"model": "tiny"})
    first = list(document_losses(engine, tokenizer, texts, most=1, journal=journal))
    assert [document.text for document in first] == texts[:1]
    before = engine.statistics.requests
    again = Journal(tmp_path, {"model": "tiny"})
    found = list(document_losses(engine, tokenizer, texts, journal=again))
    assert engine.statistics.requests == before + 2
    assert found[0] == first[0]
    whole = [document.loss for document in document_losses(engine, tokenizer, texts)]
    assert [document.loss for document in found] == pytest.approx(whole, abs=1e-4)


def test_a_bar_hears_of_every_token_once(tiny: Path, tmp_path: Path) -> None:
    """Of those that a journal remembers, too, and of what files hold before they are read."""
    texts = ["the cat sat on the mat. " * 9, "a bird", "", "the old tree"]
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    _, engine = open_engine(str(tiny))
    tokenizer = load_tokenizer(tiny)
    for _ in range(2):
        planned: list[int] = []
        advanced: list[int] = []
        found = document_losses(
            engine, tokenizer, read_texts([str(path)], "text"),
            journal=Journal(tmp_path, {"model": "tiny"}),
            planned=planned.append, advance=advanced.append,
        )  # fmt: skip
        tokens = sum(document.tokens for document in found)
        assert planned == [tokens]
        assert sum(advanced) == tokens > 0
    lines = read_texts([str(path)], "text")
    assert lines.expected(1) is None
    lines._count(path.stat().st_size // 4)
    assert lines.expected(10) == pytest.approx(40, rel=0.1)


def test_bytes_and_tokens(tiny: Path) -> None:
    texts = ["the cat sat on the mat. " * 9, "Ünïcode 漢字", "", "x"]
    _, engine = open_engine(str(tiny))
    tokenizer = load_tokenizer(tiny)
    ids = tokenizer.encode_batch(texts)
    whole = perplexity(engine, tokenizer, texts)
    assert whole["tokens"] == sum(map(len, ids))
    assert whole["bytes"] == sum(len(text.encode()) for text in texts)
    assert whole["documents"] == 4
    nats = whole["nats_per_token"] * whole["tokens"]
    assert whole["bits_per_byte"] == pytest.approx(nats / math.log(2) / whole["bytes"])
    assert math.log(whole["byte_perplexity"]) == pytest.approx(nats / whole["bytes"])
    assert whole["loss_over_log_vocabulary"] == pytest.approx(
        whole["nats_per_token"] / math.log(300)
    )
    cut = perplexity(engine, tokenizer, texts, truncate=True)
    assert cut["tokens"] == sum(min(31, len(part)) for part in ids)
    beginning = tokenizer.decode(ids[0][:31])
    assert cut["bytes"] == len(beginning) + sum(len(text.encode()) for text in texts[1:])


def test_weights_are_said(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "the cat sat"}\n')
    assert main(["perplexity", str(tiny), "--data", str(data), "--weights", "int8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["weights"] == "int8"
    _, plain = open_engine(str(tiny))
    before = perplexity(plain, load_tokenizer(tiny), ["the cat sat"])
    assert 0 < abs(found["nats_per_token"] - before["nats_per_token"]) < 0.1


def test_nothing_to_predict(tiny: Path) -> None:
    _, engine = open_engine(str(tiny))
    with pytest.raises(UserError, match="no text with a token"):
        perplexity(engine, load_tokenizer(tiny), [""])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "nowhere.jsonl"], "no such file"),
        (["--data", "DATA", "--field", "body"], "body"),
        (["--data", "DATA", "--context-length", "33"], "the context length is 32"),
        (["--data", "DATA", "--batch-size", "0"], "--batch-size 0"),
    ],
)
def test_mistakes(
    flags: list[str],
    message: str,
    tiny: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "the cat"}\n')
    flags = [str(data) if flag == "DATA" else flag for flag in flags]
    assert main(["perplexity", str(tiny), *flags]) == 2
    assert message in capsys.readouterr().err
