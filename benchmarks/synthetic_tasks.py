"""Documents of made-up words in the forms of HellaSwag and MMLU, and a tokenizer of those words.

For speed alone: lengths are drawn around those of the real tasks in Llama's tokens (HellaSwag's
contexts 60 and endings 30; MMLU's questions 80 and choices 12, five examples before each question),
the words mean nothing, and every word is one token.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

SPECIAL = ["<unk>", "<s>", "</s>"]
ELSE = "A B C D . : The following are multiple choice questions with answers about ( )".split()


def write_tokenizer(folder: Path, size: int) -> None:
    """`size` words, each one token."""
    words = [*SPECIAL, *ELSE, "Answer"]
    words += [f"w{n}" for n in range(size - len(words))]
    tokenizer = Tokenizer(WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}
    settings |= {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_documents(folder: Path, count: int, words: int) -> None:
    """hellaswag/validation.jsonl, mmlu/dev.jsonl and mmlu/test.jsonl, as score_tasks.py reads them.

    words: that there are at least, w0, w1 and so on.
    """
    draw = np.random.default_rng(0)

    def text(tokens: int) -> str:
        # Around that number with a long tail, as the real ones are.
        length = max(1, round(tokens * draw.lognormal(-0.08, 0.4)))
        return " ".join(f"w{n}" for n in draw.integers(0, words, length))

    def question() -> dict[str, Any]:
        choices = [text(12) for _ in "ABCD"]
        return {"subject": "made_up", "question": text(80), "choices": choices} | {
            "answer": int(draw.integers(4))
        }

    hellaswag = (
        {"query": text(60), "choices": [text(30) for _ in range(4)], "gold": int(draw.integers(4))}
        for _ in range(count)
    )
    _write(folder / "hellaswag" / "validation.jsonl", hellaswag)
    _write(folder / "mmlu" / "dev.jsonl", (question() for _ in range(5)))
    _write(folder / "mmlu" / "test.jsonl", (question() for _ in range(count)))


def _write(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
