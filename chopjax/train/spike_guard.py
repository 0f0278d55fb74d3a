"""optimizer.spike_factor: updates that a spike of the loss would make are left out, and counted."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

DECAY = 0.99  # of the running mean of the loss that a step's is compared with


def first_guard() -> dict[str, jax.Array]:
    """The guard's part of the state before the first step."""
    return {
        "mean_loss": jnp.zeros((), jnp.float32),
        "steps": jnp.zeros((), jnp.int32),
        "skipped": jnp.zeros((), jnp.int32),
    }


def guarded(
    old: dict[str, Any], new: dict[str, Any], metrics: dict[str, jax.Array], factor: float
) -> dict[str, Any]:
    """The new state, or where the loss is a spike or not a number the old one, but for the number
    of steps. The guard is added: it is in the old state alone."""
    guard, loss = old["guard"], metrics["loss"]
    # A mean over few steps says little: the first hundred pass unless they are not numbers.
    spike = (guard["steps"] >= 1 / (1 - DECAY)) & (loss > factor * guard["mean_loss"])
    skip = spike | ~jnp.isfinite(loss) | ~jnp.isfinite(metrics["grad_norm"])
    steps = guard["steps"] + jnp.where(skip, 0, 1)
    # A plain mean at first, then an exponential one.
    weight = jnp.maximum(1 / jnp.maximum(steps, 1), 1 - DECAY)
    moved = guard["mean_loss"] + weight * (loss - guard["mean_loss"])

    def choose(kept: Any, changed: Any) -> Any:
        return jax.tree.map(lambda a, b: jnp.where(skip, a, b), kept, changed)

    return {
        **{name: choose(old[name], new[name]) for name in new if name != "step"},
        "step": new["step"],
        "guard": {
            "mean_loss": jnp.where(skip, guard["mean_loss"], moved),
            "steps": steps,
            "skipped": guard["skipped"] + jnp.where(skip, 1, 0),
        },
    }
