"""A data folder with a few made-up rows for every task of the suites."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WORDS = "the cat sat on the mat and looked at a small bird in the old tree".split()
CHOICES = {"text": ["a bird", "the old tree", "a mat", "small"], "label": ["A", "B", "C", "D"]}


def write(folder: Path, rows: int = 4) -> Path:
    for name, split in (("arc_easy", "test"), ("arc_challenge", "test")):
        put(folder, name, split, [arc(n) for n in range(rows)])
    put(folder, "openbookqa", "test", [openbookqa(n) for n in range(rows)])
    for name, make in (
        ("piqa", lambda n: {"goal": said(n), "sol1": "sit", "sol2": "look at it", "label": n % 2}),
        ("hellaswag", hellaswag),
        ("winogrande", winogrande),
        ("boolq", lambda n: {"passage": said(n), "question": "is it so", "label": n % 2}),
        ("copa", copa),
        ("rte", lambda n: {"sentence1": said(n), "sentence2": said(n + 1), "label": n % 2}),
        ("mrpc", lambda n: {"sentence1": said(n), "sentence2": said(n + 1), "label": n % 2}),
        ("cb", lambda n: {"premise": said(n), "hypothesis": said(n + 1), "label": n % 3}),
        ("sst2", lambda n: {"sentence": said(n), "label": n % 2}),
    ):
        put(folder, name, "validation", [make(n) for n in range(rows)])
    put(folder, "sciq", "test", [sciq(n) for n in range(rows)])
    put(folder, "gsm8k", "train", [gsm8k(n) for n in range(rows + 4)])
    put(folder, "gsm8k", "test", [gsm8k(n) for n in range(rows)])
    for split in ("train", "validation"):
        put(folder, "triviaqa", split, [triviaqa(n) for n in range(rows)])
    put(folder, "c4", "validation", [{"text": said(n) * 9} for n in range(rows)])
    return folder


def put(folder: Path, name: str, split: str, rows: list[dict[str, Any]]) -> None:
    path = folder / name / f"{split}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def said(n: int) -> str:
    return " ".join(WORDS[n % 5 : n % 5 + 6]) + ". "


def arc(n: int) -> dict[str, Any]:
    return {"question": said(n), "choices": CHOICES, "answerKey": "ABCD"[n % 4]}


def openbookqa(n: int) -> dict[str, Any]:
    return {"question_stem": said(n), "choices": CHOICES, "answerKey": "ABCD"[n % 4]}


def hellaswag(n: int) -> dict[str, Any]:
    endings = ["sits.", "looks at [it].", "is old.", "flies away."]
    about = {"activity_label": "Cats", "ctx_a": said(n), "ctx_b": "the cat"}
    return {"ind": n, **about, "endings": endings, "label": str(n % 4)}


def winogrande(n: int) -> dict[str, Any]:
    sentence = f"The cat looked at the bird because _ was {WORDS[n]}."
    return {"sentence": sentence, "option1": "cat", "option2": "bird", "answer": str(1 + n % 2)}


def copa(n: int) -> dict[str, Any]:
    choices = {"choice1": "It sat.", "choice2": "It looked."}
    return {"premise": said(n).strip(), **choices, "question": "cause", "label": n % 2}


def sciq(n: int) -> dict[str, Any]:
    wrong = {f"distractor{k}": WORDS[n + k] for k in (1, 2, 3)}
    return {"support": said(n), "question": said(n + 1), **wrong, "correct_answer": "tree"}


def gsm8k(n: int, answer: str = "") -> dict[str, Any]:
    return {"question": f"{said(n)}How many?", "answer": f"{said(n + 1)}\n#### {answer or n}"}


def triviaqa(n: int, *answers: str) -> dict[str, Any]:
    return {"question": said(n).strip(". "), "answer": {"aliases": [WORDS[n], *answers]}}
