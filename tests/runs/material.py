"""What small pipelines and sweeps read: a model of five layers, a tokenizer, some lines of text."""

from __future__ import annotations

import json
from pathlib import Path

import checkpoints


def prepare(
    folder: Path, recipe: str, verbs: dict[str, str], lines: int = 24, positions: int = 64
) -> Path:
    """FOLDER/model, FOLDER/text.jsonl, and FOLDER/NAME.py for each name → verb: the recipe with
    verb, model and text filled in."""
    checkpoints.write_checkpoint(
        folder / "model",
        "llama",
        num_hidden_layers=5,
        vocab_size=300,
        max_position_embeddings=positions,
    )
    checkpoints.write_tokenizer(folder / "model", 300)
    said = [f"The cat {number} sat on mat number {number * 7}." for number in range(lines)]
    text = folder / "text.jsonl"
    text.write_text("".join(json.dumps({"text": line}) + "\n" for line in said))
    for name, verb in verbs.items():
        filled = recipe.format(verb=verb, model=str(folder / "model"), text=str(text))
        (folder / f"{name}.py").write_text(filled)
    return folder
