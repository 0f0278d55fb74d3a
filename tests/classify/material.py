"""What small grids work on: a model of four layers, a tokenizer, a template, labelled examples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import checkpoints

from chopjax.classify.settings import ClassifySettings, TrainSettings
from chopjax.classify.split import SplitSettings

WORDS = ("cat", "dog", "log")
TEMPLATE = """\
text: "it is {x}\\nthe:"
classes:
  cat: [0, feline]
  dog: [1, canine]
  log: [2]
"""
SPLIT = SplitSettings(per_class=4, held_out=9, max_test=7)


def example(number: int) -> dict[str, Any]:
    """Its text says its class, and which one it is."""
    label = number % len(WORDS)
    return {"text": f"{'ab' * (1 + label)} {number} {'xyz'[label]}", "label": label, "n": number}


def write(folder: Path, family: str = "llama", **options: Any) -> Path:
    """FOLDER/model, FOLDER/toy.yaml, FOLDER/train.jsonl and FOLDER/test.jsonl."""
    checkpoints.write_checkpoint(folder / "model", family, vocab_size=300, **options)
    checkpoints.write_tokenizer(folder / "model", 300)
    (folder / "toy.yaml").write_text(TEMPLATE)
    for name, numbers in {"train": range(36), "test": range(100, 112)}.items():
        lines = [json.dumps(example(number)) + "\n" for number in numbers]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


def settings(folder: Path, **options: Any) -> ClassifySettings:
    usual: dict[str, Any] = {
        "model": str(folder / "model"),
        "train": (str(folder / "train.jsonl"),),
        "test": (str(folder / "test.jsonl"),),
        "template": str(folder / "toy.yaml"),
        "layers": "2",
        "seeds": 1,
        "split": SPLIT,
        "training": TrainSettings(epochs=1),
    }
    return ClassifySettings(**usual | options)
