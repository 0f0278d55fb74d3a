"""Whether a run's checkpoints will fit on the disk, looked at before it begins. No jax."""

from __future__ import annotations

import math
from pathlib import Path

from chopjax.disk.free import free_bytes
from chopjax.errors import UserError
from chopjax.models import adapter_settings, parameters
from chopjax.models.config import ModelConfig
from chopjax.train import memory
from chopjax.train.settings import Settings


def checkpoint_bytes(config: ModelConfig, settings: Settings, beside: int = 0) -> int:
    """One checkpoint of a training run: what is trained, the optimizer's moments and DimCHOP's
    scores, uncompressed. Under adapters these are the adapters alone.

    beside: so many numbers that are trained beside the decoder's, in float32 (projections.py).
    """
    rule, adapter = settings.optimizer, settings.adapter

    def saved(count: int, dtype: str) -> int:
        state = memory.of_numbers(count, rule.name, dtype, rule.momentum_dtype)
        return state.params + state.moments

    if adapter.rank:
        return saved(adapter_settings.count(config, adapter) + beside, "float32")
    own = saved(parameters.count(config), settings.compute.param_dtype)
    scores = memory.of_scores(config) if settings.dimchop.final else 0
    return own + saved(beside, "float32") + scores


def run_bytes(config: ModelConfig, settings: Settings) -> int:
    """All checkpoints that a run from its beginning has at a time."""
    return checkpoint_bytes(config, settings) * checkpoints_at_once(settings)


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
    folder: Path, config: ModelConfig, settings: Settings, step: int, there: int, beside: int = 0
) -> None:
    """Raise UserError where the checkpoints of a run do not fit on the disk of `folder`. beside: as
    checkpoint_bytes has it."""
    size = checkpoint_bytes(config, settings, beside)
    count = checkpoints_at_once(settings, step, there)
    free = free_bytes(folder)
    if free is not None and size * count > free:
        raise UserError(
            f"{folder}: {count} more checkpoints of {size:,} bytes each (what is trained and its "
            f"optimizer) will lie there at a time, {size * count:,} bytes, and {free:,} are free "
            "on that disk; make room, give another --workdir, or lower checkpoints.keep_last"
        )
