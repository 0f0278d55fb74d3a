"""Whether a chop can be repaired, before anything is read or measured. No jax."""

from __future__ import annotations

import math

from chopjax.checkpoint.source import Checkpoint, Files
from chopjax.chop.fold_place import (
    KINDS,
    check_gaps,
    gaps_of,
    map_place,
    scalar_place,
    with_bias,
)
from chopjax.errors import UserError, did_you_mean
from chopjax.keep import Keep
from chopjax.models.config import ModelConfig


def check_kind(kind: str, ridge: float) -> None:
    """Raises UserError for what no model could be repaired with."""
    if kind not in KINDS:
        raise UserError(
            f"--repair: {kind!r} is not one of {', '.join(KINDS)}{did_you_mean(kind, KINDS)}"
        )
    if not (math.isfinite(ridge) and ridge >= 0):
        raise UserError(f"--ridge {ridge}: a number from 0 on is needed")


def check_repair(files: Files, keep: Keep, kind: str, ridge: float) -> ModelConfig:
    """The repaired model's configuration, with the parent's layers: it may have biases that the
    parent has not. Raises UserError where the chop cannot be repaired, with the reason."""
    check_kind(kind, ridge)
    config = check_family(files, kind)
    check_gaps(kind, gaps_of(keep, config.num_layers))
    return config


def check_family(files: Files, kind: str) -> ModelConfig:
    """The same, whichever layers go."""
    if not isinstance(files, Checkpoint):
        raise UserError(
            f"--repair {kind} looks at what layers do, and chopjax does not compute with "
            f"{files.name}: {files.why}"
        )
    config = files.config
    if kind == "scalar":
        scalar_place(config)
        return config
    if kind == "affine":
        config = with_bias(files.family, files.raw_config, config) or config
    map_place(config, kind)
    return config
