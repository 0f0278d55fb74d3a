"""Whether what a run will write fits on the disk, looked at before it begins. No jax."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chopjax.errors import UserError
from chopjax.models.config import ModelConfig
from chopjax.plan import memory
from chopjax.train.settings import Settings


def checkpoint_bytes(config: ModelConfig, settings: Settings) -> int:
    """One checkpoint of a training run: parameters and the optimizer's moments, uncompressed."""
    state = memory.training(
        config,
        settings.optimizer.name,
        settings.compute.param_dtype,
        settings.optimizer.momentum_dtype,
    )
    return state.params + state.moments


def checkpoints_at_once(settings: Settings, step: int = 0, there: int = 0) -> int:
    """How many more a run will have at a time than the `there` that it has after `step` updates.

    The one that is being written lies beside the `keep_last` that stay.
    """
    every, total, kept = settings.checkpoints.every, settings.total_steps, settings.checkpoints
    if step >= total:
        return 0
    saves = -(-total // every) - step // every
    # At the end: total and the multiples of `every` before it are the newest; of what is older,
    # those stay whose step is a multiple of both.
    oldest = max(((total - 1) // every - kept.keep_last + 1) * every, step + 1)
    both = math.lcm(kept.keep_every, every)
    held = (oldest - 1) // both - step // both if both else 0
    return max(1, min(there + saves, kept.keep_last + 1 + held) - there)


def check_training(
    folder: Path, config: ModelConfig, settings: Settings, step: int, there: int
) -> None:
    """Raise UserError where the checkpoints of a run do not fit on the disk of `folder`."""
    size, count = checkpoint_bytes(config, settings), checkpoints_at_once(settings, step, there)
    free = _free(folder)
    if free is not None and size * count > free:
        raise UserError(
            f"{folder}: {count} more checkpoints of {size:,} bytes each (parameters and optimizer) "
            f"will lie there at a time, {size * count:,} bytes, and {free:,} are free on that "
            "disk; make room, give another --workdir, or lower checkpoints.keep_last"
        )


def check_pipeline(
    workdir: Path,
    num_layers: int,
    model_bytes: int,
    models: Sequence[tuple[ModelConfig, Settings]],
    texts: Sequence[dict[str, Any]],
) -> None:
    """Raise UserError where what `chopjax run` writes cannot fit, as far as can be told before.

    models: of each round, what is healed and how. Counted are a chopped and a healed checkpoint of
    each, the checkpoints of its healing, and half a byte of token for a byte of text; results are
    not. What is in the folder already is taken off.
    """
    total = _tokens(texts)
    for config, settings in models:
        total += 2 * model_bytes * config.num_layers // num_layers
        total += checkpoint_bytes(config, settings) * checkpoints_at_once(settings)
    _check_about(workdir, total)


def check_sweep(
    workdir: Path,
    model: ModelConfig,
    kept: Sequence[int],
    settings: Settings,
    keep_healed: bool,
    texts: Sequence[dict[str, Any]],
) -> None:
    """The same for healed points of `chopjax sweep`, one for each number of layers in `kept`: one
    is on the disk at a time, or all with `keep_healed`."""
    sizes = [
        checkpoint_bytes(model.keep(range(count)), settings) * checkpoints_at_once(settings)
        for count in kept
    ]
    _check_about(workdir, _tokens(texts) + (sum(sizes) if keep_healed else max(sizes, default=0)))


def _tokens(texts: Sequence[dict[str, Any]]) -> int:
    """Four bytes of text are about a token, which takes two to four."""
    return sum(file.get("size") or 0 for file in texts) // 2


def _check_about(workdir: Path, total: int) -> None:
    files = (path for path in workdir.rglob("*") if path.is_file() and not path.is_symlink())
    there = sum(path.stat().st_size for path in files)
    free = _free(workdir)
    if free is not None and total - there > free:
        raise UserError(
            f"{workdir}: about {total:,} bytes will be written there in all (checkpoints of "
            f"training, models, tokens; {there:,} are there already), and {free:,} are free on "
            "that disk; make room, give another --workdir, or lower heal.checkpoints.keep_last"
        )


def _free(folder: Path) -> int | None:
    """None where the file system does not say."""
    usage = shutil.disk_usage(folder)
    return usage.free if usage.total else None
