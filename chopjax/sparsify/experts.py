"""What the matrices of single experts read: of each, over the tokens that the router sends there.

Tokens are sorted by expert, as the feed-forward itself does it (models/experts.py). What goes down
is not weighted by the router, as other implementations have it: there the weight comes last.

Axes: M tokens, D model, X experts, C experts of a token, R = M·C rows, I a matrix's inputs.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from chopjax.models.activations import activated
from chopjax.models.config import ModelConfig
from chopjax.models.experts import route
from chopjax.models.grouped import grouped, outer
from chopjax.models.linear import linear
from chopjax.models.parameters import Params

READ = "router"  # reads what the experts read
ROWS = "rows"  # among the sums: how many tokens an expert got, [X]


def expert_sums(
    mlp: Params, config: ModelConfig, x_MD: jax.Array, real_M1: jax.Array, products: bool
) -> dict[str, jax.Array]:
    """ "up" and "down" → Σ xᵀx [X, I, I] or Σ x² [X, I], and ROWS; float32. To be traced.

    mlp: one layer's. x_MD: what the router reads, float32. real_M1: bool, which are tokens.
    """
    experts = config.experts
    assert experts is not None
    choice_MC, _ = route(linear(x_MD, mlp[READ]), experts)
    order_R = jnp.argsort(choice_MC.reshape(-1), stable=True)
    expert_R = choice_MC.reshape(-1)[order_R]
    chosen_RX = expert_R[:, None] == jnp.arange(experts.count)
    size_X = chosen_RX.sum(0, dtype=jnp.int32)
    real_R1 = real_M1[order_R // experts.per_token]
    x_RD = jnp.where(real_R1, x_MD[order_R // experts.per_token], 0)
    gate_RF, up_RF = (grouped(x_RD, mlp[n].astype(x_RD.dtype), size_X) for n in ("gate", "up"))
    inner_RF = activated(config.activation, gate_RF, up_RF)

    def added(x_RI: jax.Array) -> jax.Array:
        if not products:
            return jax.ops.segment_sum(jnp.square(x_RI), expert_R, experts.count)
        with jax.default_matmul_precision("highest"):
            return outer(x_RI, x_RI, size_X)

    rows_X = (chosen_RX & real_R1).sum(0, dtype=jnp.float32)
    return {"up": added(x_RD), "down": added(inner_RF), ROWS: rows_X}
