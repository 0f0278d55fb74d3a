"""A forward pass that also gives what single layers made of the tokens.

Axes: B batch, T time, D model, E what the head reads, L layers, P of them that are looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from chopjax.models import decoder
from chopjax.models.compute import Compute
from chopjax.models.config import ModelConfig
from chopjax.models.mesh import BATCH_AXES, constrain
from chopjax.models.parameters import Params


class Tapped(NamedTuple):
    """hidden_BTE: what the head reads. states_PBTD: the residual stream behind some layers.
    attended_PBTD: what some layers' attention gave, before any norm, scale or sum. None where no
    layers were asked for; of P + 1, the last one means nothing."""

    hidden_BTE: jax.Array
    states_PBTD: jax.Array | None
    attended_PBTD: jax.Array | None


def tapped(
    params: Params,
    config: ModelConfig,
    compute: Compute,
    tokens_BT: jax.Array,
    segments_BT: jax.Array | None = None,
    positions_BT: jax.Array | None = None,
    states: Sequence[int] = (),
    attended: Sequence[int] = (),
) -> Tapped:
    """decoder.hidden_states, with the states behind these layers and the attention of those, both
    ascending.

    One pass through the stack; of other layers nothing is kept. Not to be differentiated: what is
    collected would be kept once a layer.
    """
    if positions_BT is None:
        positions_BT = jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None]
    parts = decoder.parts(params, config, compute, positions_BT, segments_BT)
    hidden_BTD = parts.embed(tokens_BT)
    asked = (states, attended)

    def step(carry: Any, xs: Any) -> tuple[Any, None]:
        hidden_BTD, rooms = carry
        layer, slots = xs
        hidden_BTD, attended_BTD = parts.opened(hidden_BTD, layer)
        made = (hidden_BTD, attended_BTD)
        filled = [
            None if room is None else jax.lax.dynamic_update_index_in_dim(room, x_BTD, slot, 0)
            for room, x_BTD, slot in zip(rooms, made, slots, strict=True)
        ]
        return (hidden_BTD, filled), None

    # A layer that is not asked for lies where the next one that is will lie in its place.
    slots = [jnp.asarray(np.searchsorted(each, range(config.num_layers))) for each in asked]
    rooms = [_room(each, config.num_layers, hidden_BTD) for each in asked]
    (hidden_BTD, rooms), _ = jax.lax.scan(step, (hidden_BTD, rooms), (parts.stack, slots))
    return Tapped(parts.finish(hidden_BTD), *rooms)


def _room(layers: Sequence[int], num_layers: int, hidden_BTD: jax.Array) -> jax.Array | None:
    """For what layers give; where the last one is not asked for, for what comes behind, too."""
    if not layers:
        return None
    size = len(layers) + (layers[-1] != num_layers - 1)
    return constrain(jnp.zeros((size, *hidden_BTD.shape), hidden_BTD.dtype), None, BATCH_AXES)
