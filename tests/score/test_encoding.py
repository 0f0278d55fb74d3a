"""Token ids of contexts and continuations against lm-evaluation-harness's hf backend."""

from __future__ import annotations

from pathlib import Path

import checkpoints
import numpy as np
import pytest
from lm_eval.models.huggingface import HFLM

from chopjax.data.tokenizer import build
from chopjax.errors import UserError
from chopjax.score.encoding import Encoder, check_pairs

TEXTS = [
    ("Question: what is it?\nAnswer:", " a cat"),
    ("ends with a space ", "cat"),
    ("ends with many  \n ", " cat sat"),
    ("no space", "between"),
    ("upon a", " time there was"),
    ("Ünïcode 漢字", " emoji 🙂 ok"),
    ("", " no context at all"),
    ("", "<|endoftext|> begins with the prefix"),
    ("<|endoftext|>has it already", " yes"),
    ("<s>has it already", " yes"),
    ("tabs\tand\nlines\n\n", "more\n"),
    ("Question: what is it?\nAnswer:", " a cat"),
]


def their_pairs(folder: Path, add_bos_token: bool | None) -> list[tuple[list[int], list[int]]]:
    """What the hf backend's own methods make of TEXTS; no weights are loaded."""
    theirs = HFLM.__new__(HFLM)
    options = {} if add_bos_token is None else {"add_bos_token": add_bos_token}
    theirs.tokenizer = build(folder, "tokenizer", **options)
    theirs.backend, theirs.add_bos_token, theirs.custom_prefix_token_id = (
        "causal", add_bos_token, None,
    )  # fmt: skip
    seen: list[tuple[list[int], list[int]]] = []

    def keep(requests: list, **_: object) -> list:
        seen.extend((context, continuation) for _, context, continuation in requests)
        return []

    theirs._loglikelihood_tokens = keep
    theirs.enable_thinking = None

    class Request:
        def __init__(self, args: tuple[str, str]):
            self.args = args

    theirs.loglikelihood([Request(pair) for pair in TEXTS], disable_tqdm=True)
    return seen


def folders(shared: Path) -> list[Path]:
    names = ("llama2-tokenizer", "gpt2-tokenizer", "mix-llama-12l", "tinystories-656k")
    return [shared / "models" / name for name in names]


def compare(folder: Path) -> None:
    for add_bos_token in (None, True, False):
        options = {} if add_bos_token is None else {"add_bos_token": add_bos_token}
        tokenizer = build(folder, "tokenizer", **options)
        prefix = tokenizer.bos_token_id
        encoder = Encoder(tokenizer, add_bos_token, prefix)
        ours = encoder.pairs(TEXTS)
        theirs = their_pairs(folder, add_bos_token)
        for text, (context, continuation), expected in zip(TEXTS, ours, theirs, strict=True):
            assert (context.tolist(), continuation.tolist()) == expected, (folder, text)


def test_own_tokenizer(tmp_path: Path) -> None:
    compare(checkpoints.write_tokenizer(tmp_path, vocab_size=300))


def test_real_tokenizers(shared: Path) -> None:
    for folder in folders(shared):
        compare(folder)


def test_what_cannot_be_scored_is_named() -> None:
    def pair(context: int, continuation: int) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(context, np.int32), np.zeros(continuation, np.int32)

    assert check_pairs([pair(3, 2), pair(9, 2)], ["a", "b"], 9) == [1]
    with pytest.raises(UserError, match="b: the continuation adds no token"):
        check_pairs([pair(3, 2), pair(3, 0)], ["a", "b"], 9)
    with pytest.raises(UserError, match="a: the context has no tokens"):
        check_pairs([pair(0, 2)], ["a"], 9)
    with pytest.raises(UserError, match="a: the continuation has 10 tokens"):
        check_pairs([pair(3, 10)], ["a"], 9)
