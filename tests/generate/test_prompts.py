"""Prompts of all kinds, and what is said where one is none."""

from __future__ import annotations

import json
from pathlib import Path

import checkpoints
import numpy as np
import pytest
from transformers import AutoTokenizer

from chopjax.data.tokenizer import build
from chopjax.errors import UserError
from chopjax.generate.prompts import Prompt, check_room, encode, read_prompts
from chopjax.score.chat import Template
from chopjax.score.encoding import Encoder

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
TALK = [{"role": "user", "content": "the cat"}]


def write(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_kinds(tmp_path: Path) -> None:
    rows = [{"prompt": "the cat", "id": 7}, {"messages": TALK}, {"tokens": [5, 4]}, {"prompt": ""}]
    prompts = read_prompts([write(tmp_path / "p.jsonl", *rows)])
    assert [prompt.kind for prompt in prompts] == ["prompt", "messages", "tokens", "prompt"]
    folder = checkpoints.write_tokenizer(tmp_path, vocab_size=300)
    AutoTokenizer.from_pretrained(folder, chat_template=TEMPLATE).save_pretrained(folder)
    theirs, tokenizer = AutoTokenizer.from_pretrained(folder), build(folder, "m")
    template = Template(tokenizer, "m", TEMPLATE)
    for chat in (False, True):
        ids = encode(prompts, Encoder(tokenizer, None, 0), template, chat)
        talk = theirs(theirs.apply_chat_template(TALK, add_generation_prompt=True, tokenize=False))[
            "input_ids"
        ]
        expected = talk if chat else theirs("the cat")["input_ids"]
        assert ids[0].tolist() == expected
        assert ids[1].tolist() == talk
        assert ids[2].tolist() == [5, 4]
    (empty,) = encode([Prompt("prompt", "")], Encoder(tokenizer, None, 0), template, False)
    assert empty.tolist() == [0], "what a text begins with"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, r"one of the fields prompt, messages, tokens is needed \(here: text\)"),
        ({"prompt": "x", "tokens": [1]}, "one of the fields"),
        ({"prompt": 3}, "field 'prompt' is 3, no text"),
        ({"prompt": "a \ud800"}, "half of a surrogate pair"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "half of a surrogate pair"),
        ({"tokens": []}, r"field 'tokens' is \[\], no list of token ids"),
        ({"tokens": [1, -2]}, "no list of token ids"),
        ({"tokens": [True]}, "no list of token ids"),
        ({"messages": [{"role": "cat", "content": "x"}]}, "message 1 has the role 'cat'"),
    ],
)
def test_what_is_no_prompt(row: object, message: str, tmp_path: Path) -> None:
    place = write(tmp_path / "p.jsonl", {"prompt": "x"}, row)
    with pytest.raises(UserError, match=f"p.jsonl.*2.*{message}"):
        read_prompts([place])


def test_no_prompts_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no prompt in it"):
        read_prompts([write(tmp_path / "p.jsonl")])
    with pytest.raises(UserError, match=r"q\.jsonl"):
        read_prompts([str(tmp_path / "q.jsonl")])


def test_room() -> None:
    check_room([np.arange(24)], 8, 32)
    with pytest.raises(UserError, match="prompt 2: 26 tokens and --max-new-tokens 8 are 2 more"):
        check_room([np.arange(3), np.arange(26)], 8, 32)


def test_rows_for_prepare() -> None:
    answer = {"role": "assistant", "content": "b"}
    for prompt in (Prompt("messages", TALK), Prompt("prompt", "the cat")):
        assert prompt.with_answer("b") == {"messages": [*TALK, answer]}
