"""Opening a Hugging Face checkpoint by its name: a folder here, or one on the hub. No jax."""

from __future__ import annotations

import re
from pathlib import Path

from chopjax.checkpoint.choppable import TO_CHOP
from chopjax.checkpoint.packed import TO_COMPUTE, TO_SCORE
from chopjax.checkpoint.source import (
    GGUF_ADVICE,
    PICKLE_ADVICE,
    PICKLES,
    Checkpoint,
    F,
    Files,
    Opening,
    open_folder,
)
from chopjax.checkpoint.text_alone import TEXT_ALONE
from chopjax.disk.files import expanded
from chopjax.errors import UserError


def open_checkpoint(model: str, revision: str | None = None) -> Checkpoint:
    """Open a local folder or a hub id (`owner/name`), in floating point: of what `chopjax quantize`
    wrote, the numbers that its codes stand for (packed.py).

    Raises UserError with everything that is wrong: the folder, config.json, the index, headers,
    and tensors missing, unknown, duplicate or of another shape than config.json asks for.
    """
    return _open(model, revision, TO_COMPUTE)


def open_to_score(model: str, revision: str | None = None) -> Checkpoint:
    """The same, and of what `chopjax quantize` wrote the codes."""
    return _open(model, revision, TO_SCORE)


def open_to_chop(model: str, revision: str | None = None, text_only: bool = False) -> Files:
    """The same of any decoder whose layers can be told apart; a Checkpoint where chopjax computes
    with it, and then as strict. text_only: of a model with other parts, its language model."""
    return _open(model, revision, TEXT_ALONE) if text_only else _open(model, revision, TO_CHOP)


def _open(model: str, revision: str | None, opening: Opening[F]) -> F:
    folder = expanded(model)
    if folder.is_dir():
        if revision is not None:
            raise UserError(f"--revision is for hub ids; {model} is a local folder")
        return open_folder(folder, model, opening)
    if folder.exists():
        if any(folder.match(pattern) for pattern in PICKLES):
            raise UserError(f"{model}: {PICKLE_ADVICE}")
        if folder.suffix == ".gguf":
            raise UserError(f"{model}: {GGUF_ADVICE}")
        raise UserError(f"{model} is a file; give the folder that holds it and its config.json")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", model):
        raise UserError(
            f"{model}: no such folder, nor does it look like a hub id (owner/name). "
            f"The current folder is {Path.cwd()}"
        )
    from chopjax.checkpoint.hub import open_hub  # needed where the model is not here

    return open_hub(model, revision, opening)
