"""Forward latency of models side by side.

Axes: B batch, T time, E table width, V vocabulary.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from chopjax.models.config import ModelConfig
from chopjax.models.decoder import Compute, head_kernel, hidden_states
from chopjax.models.parameters import Params


def forward_seconds(
    models: Mapping[str, tuple[Params, ModelConfig]],
    batch: int,
    length: int,
    compute: Compute = Compute(),
    rounds: int = 11,
) -> dict[str, float]:
    """Median seconds of one forward pass over [batch, length] tokens, by model.

    A pass ends with the logits of the last position, what prefill needs. The models take turns, so
    that a drift of the machine's speed meets all of them alike; the first turn compiles and does
    not count.
    """

    def forward(params: Params, tokens_BT: jax.Array, config: ModelConfig) -> jax.Array:
        hidden_BTE = hidden_states(params, config, compute, tokens_BT)
        kernel_EV = head_kernel(params, config).astype(compute.dtype)
        return hidden_BTE[:, -1] @ kernel_EV

    step = jax.jit(forward, static_argnums=2)
    tokens_BT = jnp.zeros((batch, length), jnp.int32)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(rounds + 1):
        for name, (params, config) in models.items():
            start = time.perf_counter()
            step(params, tokens_BT, config).block_until_ready()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}
