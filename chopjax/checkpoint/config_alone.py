"""A config.json without its weights: enough to plan with and to count parameters. No jax."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chopjax.checkpoint.describe import HUGGINGFACE
from chopjax.checkpoint.source import FOLDER_MARK, PICKLES, read_config
from chopjax.disk.files import read_json_object
from chopjax.disk.paths import expanded

# What a folder with weights of whatever kind has.
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.gguf", *PICKLES)


def local_config(model: str) -> dict[str, Any] | None:
    """config.json of a model on this machine, by its own path or that of its folder; None where
    there is neither: a hub id.

    Raises UserError for a folder without one, and where it is not JSON.
    """
    path = expanded(model)
    if is_config(path):
        return read_json_object(path)
    if not path.is_dir():
        return None
    return read_config(path / HUGGINGFACE if (path / FOLDER_MARK).is_file() else path)


def is_config(path: Path) -> bool:
    """Whether this is the path of a configuration itself."""
    return path.suffix == ".json" and path.is_file()


def has_weights(folder: Path) -> bool:
    """Whether anything in it looks like a checkpoint's weights, or chopjax made it."""
    return (folder / FOLDER_MARK).exists() or any(any(folder.glob(pattern)) for pattern in WEIGHTS)
