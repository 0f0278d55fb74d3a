"""What the answers to requests depend on besides the ids that are asked for."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import Any

import jax

from chopjax.checkpoint.identity import model_files
from chopjax.checkpoint.load import Loaded
from chopjax.disk.hashes import file_hashes
from chopjax.score.engine import Engine

SOFTWARE = ("chopjax", "jax", "tokenizers")  # computes logits, and turns ids into text


def identity(loaded: Loaded, engine: Engine) -> Mapping[str, Any]:
    """By content: the weights, config.json, generation_config.json and the tokenizer's files.

    Tasks, prompts, chat template and special tokens have their say in the ids of a request, which
    an answer is found by.
    """
    named = model_files(loaded)
    hashes = file_hashes(named.values())
    return {
        "files": {name: hashes[path][:32] for name, path in named.items()},
        "dtype": engine.compute.dtype,
        "max_length": engine.max_length,
        "platform": jax.default_backend(),
        "software": {name: importlib.metadata.version(name) for name in SOFTWARE},
    }
