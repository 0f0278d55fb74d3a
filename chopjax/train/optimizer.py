"""Lion and AdamW with the papers' settings, and the learning rate's schedule.

The optimizers are optax's. Gradient accumulation is not here: a step sums its microbatches itself
(step.py), so that one optimizer step is always one batch and its state has no half-full buffers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from chopjax.models.parameters import Params
from chopjax.train.settings import OptimizerSettings

ADAM_EPSILON = 1e-8


def learning_rate(
    settings: OptimizerSettings, total_steps: int
) -> Callable[[jax.typing.ArrayLike], jax.Array]:
    """Update number (0-based) → learning rate.

    Linear over the first `warmup_steps` updates, the last of them at the peak; then half a cosine
    down to `final_fraction` of the peak, reached by update `total_steps - 1`.
    """
    warmup, peak = settings.warmup_steps, settings.peak_learning_rate
    decay = max(total_steps - warmup, 1)

    def rate(update: jax.typing.ArrayLike) -> jax.Array:
        done = jnp.asarray(update, jnp.float32) + 1
        rising = done / max(warmup, 1)
        cosine = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip((done - warmup) / decay, 0, 1)))
        falling = settings.final_fraction + (1 - settings.final_fraction) * cosine
        return peak * jnp.where(done <= warmup, rising, falling)

    return rate


def decayed(params: Params) -> Any:
    """Which parameters weight decay acts on: all but norms and biases (Just CHOP, section 4)."""

    def decays(path: tuple[Any, ...], _: Any) -> bool:
        *parents, name = (str(getattr(key, "key", getattr(key, "name", key))) for key in path)
        return not (name.endswith("bias") or any(p.endswith("norm") for p in parents))

    return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(settings: OptimizerSettings, total_steps: int) -> optax.GradientTransformation:
    """Clip by global norm, then Lion (arXiv 2302.06675) or AdamW (arXiv 1711.05101).

    Momentum is kept in `momentum_dtype`; AdamW's second moment in the parameters' dtype.
    """
    common: dict[str, Any] = {
        "learning_rate": learning_rate(settings, total_steps),
        "b1": settings.b1,
        "b2": settings.b2,
        "mu_dtype": settings.momentum_dtype,
        "weight_decay": settings.weight_decay,
        "mask": decayed,
    }
    if settings.name == "lion":
        rule = optax.lion(**common)
    else:
        rule = optax.adamw(eps=ADAM_EPSILON, **common)
    if settings.clip_norm == 0:
        return rule
    return optax.chain(optax.clip_by_global_norm(settings.clip_norm), rule)
