"""A Hugging Face checkpoint whose tensors were changed, with all that lay beside it. No jax."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from chopjax.checkpoint.assets import copy_assets, write_config
from chopjax.checkpoint.source import Checkpoint
from chopjax.checkpoint.writer import Tensor, write_safetensors


def write_changed(
    folder: Path,
    checkpoint: Checkpoint,
    raw_config: Mapping[str, Any],
    tensors: Iterable[Tensor],
    max_shard_bytes: int,
    advance: Callable[[int], None],
) -> None:
    """Write into a new folder the checkpoint's tokenizer and the like, config.json, and tensors.

    advance: called with the bytes written. chopjax.json and the card are not written.
    """
    copy_assets(checkpoint.folder, folder)
    write_config(folder, raw_config)
    metadata = {"format": "pt"} | checkpoint.metadata  # transformers refuses files without it
    write_safetensors(folder, tensors, max_shard_bytes, metadata, advance)
