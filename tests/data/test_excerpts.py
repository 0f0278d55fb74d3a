"""Calibration sequences: how many, how long, which documents."""

from __future__ import annotations

import json
from pathlib import Path

import checkpoints
import pytest

from chopjax.data.excerpts import excerpts
from chopjax.data.tokenizer import Tokenizer, load_tokenizer
from chopjax.errors import UserError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    checkpoints.write_tokenizer(folder, 300)
    return load_tokenizer(folder)


def write(path: Path, texts: list[str]) -> list[str]:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return [str(path)]


def test_an_excerpt_is_the_beginning_of_a_document(tmp_path: Path, tokenizer: Tokenizer) -> None:
    texts = [f"{letter}{letter * 30}" for letter in "abcdefghijkl"]
    found = excerpts(write(tmp_path / "t.jsonl", texts), tokenizer, 5, 9, seed=0)
    beginnings = [[tokenizer.bos_id, *ids[:8]] for ids in tokenizer.encode_batch(texts)]
    assert len(found) == 5
    assert all(sequence in beginnings for sequence in found)
    assert len({tuple(sequence) for sequence in found}) == 5


def test_the_seed_draws_the_documents(tmp_path: Path, tokenizer: Tokenizer) -> None:
    files = write(tmp_path / "t.jsonl", [f"{number} is a number" for number in range(40)])
    first, again, other = (excerpts(files, tokenizer, 6, 20, seed) for seed in (1, 1, 2))
    assert first == again != other


def test_few_documents_give_further_pieces(tmp_path: Path, tokenizer: Tokenizer) -> None:
    files = write(tmp_path / "t.jsonl", ["the cat sat on the mat. " * 20])
    assert len(excerpts(files, tokenizer, 4, 8, seed=0)) == 4


def test_too_little_text_gives_what_there_is(
    tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write(tmp_path / "t.jsonl", ["the cat", "", "a"])
    assert len(excerpts(files, tokenizer, 4, 8, seed=0)) < 4
    assert "no more" in capsys.readouterr().err
    with pytest.raises(UserError, match="no text"):
        excerpts(write(tmp_path / "e.jsonl", ["", ""]), tokenizer, 4, 8, seed=0)
