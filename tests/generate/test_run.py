"""Replies in the prompts' order, and through a kill."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest

from chopjax.compilation import compiled
from chopjax.data.tokenizer import build
from chopjax.generate.prompts import Prompt
from chopjax.generate.run import Clock, Reply, corpus_row, replies
from chopjax.generate.voice import Voice
from chopjax.score.drafting import Drafting, of_layers
from chopjax.score.generation import Asked
from chopjax.score.journal import Journal
from chopjax.score.model import open_engine
from chopjax.score.next_token import Choice, Sampling

IDS = [np.array(ids) for ids in ([3], list(range(1, 40)), [5, 9, 4], [3])]


@pytest.mark.parametrize("with_draft", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_in_order_and_through_a_kill(with_draft: bool, tmp_path: Path) -> None:
    """The longest prompt, the second, is computed first. Equal prompts have draws of their own."""
    checkpoints.write_checkpoint(tmp_path / "m", vocab_size=300)
    checkpoints.write_tokenizer(tmp_path / "m", vocab_size=300)
    _, engine = open_engine(str(tmp_path / "m"), dtype="float32", rows=1, max_length=64)
    voice = Voice(build(tmp_path / "m", "m"))
    asked = Asked(9, choice=Choice(sampling=Sampling(1.0)), seed=2)
    drafting = Drafting(engine, of_layers(engine, [0, 1]), 2) if with_draft else None
    clock = Clock()

    def answers(journal: Journal | None = None) -> list[tuple[int, list[int]]]:
        found = replies(engine, IDS, asked, voice, clock, drafting, journal)
        return [(number, reply.tokens) for number, reply in found]

    expected = answers()
    assert [number for number, _ in expected] == [0, 1, 2, 3]
    assert expected[0][1] != expected[3][1]
    assert clock.tokens == 4 * 9
    assert clock.seconds > 0

    journal = Journal(tmp_path, {"model": "m"})
    some = replies(engine, IDS, asked, voice, clock, drafting, journal)
    assert next(some)[0] == 0
    some.close()  # as an exception would
    journal = Journal(tmp_path, {"model": "m"})
    assert answers(journal) == expected
    params, engine.params = engine.params, {}  # nothing is computed again
    assert answers(Journal(tmp_path, {"model": "m"})) == expected
    engine.params = params


def test_seconds_are_without_compiling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that goes on while a program is compiled, and at no other time."""
    checkpoints.write_checkpoint(tmp_path / "m", vocab_size=300, num_hidden_layers=1)
    checkpoints.write_tokenizer(tmp_path / "m", vocab_size=300)
    _, engine = open_engine(str(tmp_path / "m"), dtype="float32", max_length=64)
    now = [0.0]

    def slowly(lowered: Any) -> Any:
        now[0] += 100
        return compiled(lowered)

    monkeypatch.setattr("chopjax.score.engine.compiled", slowly)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = Clock()
    found = replies(engine, IDS, Asked(3), Voice(build(tmp_path / "m", "m")), clock)
    assert [reply.seconds for _, reply in found] == [0.0] * 4
    assert clock.seconds == 0 < engine.statistics.compile_seconds


class Pieces:
    """A tokenizer of SentencePiece's kind: a text's first space is not written."""

    def decode(self, ids: list[int], **options: bool) -> str:
        pieces = {1: "", 2: "▁the", 3: "▁cat", 4: "▁sat", 5: "▁."}
        return "".join(pieces[one] for one in ids).replace("▁", " ").removeprefix(" ")


def test_rows_of_a_corpus() -> None:
    """With the space between prompt and reply, and without a stop string."""
    voice, ids = Voice(Pieces(), ["."]), np.array([1, 2, 3])
    reply = Reply("sat ", [4, 5], 0, 0, 0, 0.0)
    assert voice.cut([4, 5, 4]) == (reply.tokens, reply.text)
    prompt = Prompt("prompt", "the cat")
    assert corpus_row(prompt, ids, reply, voice) == {"text": "the cat sat "}
    assert corpus_row(Prompt("tokens", [1, 2, 3]), ids, reply, voice) == {"text": "the cat sat "}
    assert corpus_row(prompt, ids, reply, voice, chat=True) == prompt.with_answer("sat ")
