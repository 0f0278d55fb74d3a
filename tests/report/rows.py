"""Rows of a sweep's points, made up."""

from __future__ import annotations

from typing import Any

SETTINGS = {
    "model": "somewhere/model",
    "text": {"held_out": "h.jsonl", "train": "t.jsonl"},
    "heal": {"total_steps": 10, "data": {"batch_size": 2, "sequence_length": 3}},
}


def row(strategy: str, remove: int, loss: float, healed: bool = False, seed: int = 0) -> Any:
    return {
        "strategy": strategy,
        "remove": remove,
        "keep": "0-7" if strategy == "parent" else "0",
        "healed": healed,
        "seed": seed,
        "loss": loss,
        "perplexity": 2 * loss,
        "loss_over_log_vocabulary": loss / 4,
        "tokens": 1000,
        "convention": "mean over tokens",
        "accuracy": {"piqa": [0.5 + loss / 100, 0.01], "copa": [0.6, None]},
        "chance": {"piqa": 0.5, "copa": None},
    }
