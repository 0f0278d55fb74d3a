"""What the answers to requests depend on besides the ids that are asked for."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from chopjax.checkpoint.assets import assets
from chopjax.checkpoint.hashes import file_hashes
from chopjax.checkpoint.load import Loaded
from chopjax.checkpoint.provenance import PROVENANCE
from chopjax.checkpoint.source import Checkpoint
from chopjax.score.engine import Engine

# Ride along with a model and change no number.
LEGAL = ("LICENSE", "NOTICE", "USE_POLICY")
SOFTWARE = ("chopjax", "jax", "tokenizers")  # computes logits, and turns ids into text


def identity(loaded: Loaded, engine: Engine) -> Mapping[str, Any]:
    """By content: the weights, config.json, generation_config.json and the tokenizer's files.

    Tasks, prompts, chat template and special tokens have their say in the ids of a request, which
    an answer is found by.
    """
    weights = loaded.weights
    if isinstance(weights, Checkpoint):
        files = {tensor.file for tensor in weights.tensors.values()}
        named = {path.name: path for path in sorted(files)}
    else:
        files = {path for path in weights.rglob("*") if path.is_file()}
        named = {path.relative_to(weights).as_posix(): path for path in sorted(files)}
    for name in assets(loaded.folder):
        if name != PROVENANCE and not Path(name).name.startswith(LEGAL):
            named[name] = loaded.folder / name
    hashes = file_hashes(named.values())
    return {
        "files": {name: hashes[path][:32] for name, path in named.items()},
        "dtype": engine.compute.dtype,
        "max_length": engine.max_length,
        "platform": jax.default_backend(),
        "software": {name: importlib.metadata.version(name) for name in SOFTWARE},
    }
