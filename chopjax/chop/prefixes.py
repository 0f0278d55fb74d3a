"""The loss of many keep lists: every common prefix of layers runs once, and nothing is compiled
for any one of them.

The hidden state before a layer depends on the layers that ran before it and on nothing else, so
keep lists that begin alike share their beginning. Which layers run is data to the compiled
function, which walks a list of indices into the stacked parameters from one place to another.

Axes: B batch, T time, D model, L layers.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Collection, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from chopjax.chop.calibration import (
    CalibrationBatch,
    positions,
    predicted_tokens,
    predictions,
)
from chopjax.keep import Keep
from chopjax.models import decoder
from chopjax.models.compute import Compute
from chopjax.models.config import ModelConfig
from chopjax.models.head import head_of
from chopjax.models.loss import cross_entropy
from chopjax.models.parameters import Params


class Prefixes:
    """Mean losses of keep lists on a calibration set, and hidden states that later lists need."""

    def __init__(
        self,
        params: Params,
        config: ModelConfig,
        compute: Compute,
        batches: Sequence[CalibrationBatch],
    ):
        self.num_layers = config.num_layers
        self.blocks_run = 0  # layers run so far, each on the whole calibration set
        self._params, self._config, self._compute = params, config, compute
        self._batches = batches
        self._tokens = predicted_tokens(batches)
        # For each batch: prefix of a keep list → hidden_BTD after these layers.
        self._states: list[dict[Keep, jax.Array]] = [{} for _ in batches]

    @property
    def num_batches(self) -> int:
        """How often `losses` calls `done` for one keep list."""
        return len(self._batches)

    def losses(
        self,
        keeps: Collection[Keep],
        remember: Callable[[Keep], Collection[int]] = lambda keep: (),
        done: Callable[[int], None] = lambda count: None,
    ) -> dict[Keep, float]:
        """Keep list → nats per predicted token.

        remember: the lengths of a list's prefixes whose states are to outlast the call.
        done: called with 1 after every list on every batch, for a progress bar.
        """
        # In descending order one-layer-out lists come shallowest gap first: what is shared later
        # is the prefix of untouched layers, and one state at a time is enough.
        order = sorted(set(keeps), reverse=True)
        shared = [_common(a, b) for a, b in itertools.pairwise(order)] + [0]
        stops = [_minima(shared[index:]) for index in range(len(order))]
        totals = np.zeros(len(order))
        for batch, states in zip(self._batches, self._states, strict=True):
            lasting = set(states)
            sums = []
            for keep, later in zip(order, stops, strict=True):
                wanted = set(remember(keep))
                lasting |= {keep[:length] for length in wanted}
                last_BTD = self._run(batch, states, keep, wanted | later)
                sums.append(self._loss(last_BTD, batch))
                for prefix in set(states) - lasting - {keep[:length] for length in later | {0}}:
                    del states[prefix]
                done(1)
            totals += np.asarray(jnp.stack(sums), np.float64)
            for prefix in set(states) - lasting:
                del states[prefix]
        return dict(zip(order, totals / self._tokens, strict=True))

    def _run(
        self,
        batch: CalibrationBatch,
        states: dict[Keep, jax.Array],
        keep: Keep,
        stops: Collection[int],
    ) -> jax.Array:
        """The hidden state after all of `keep`; those after the lengths in `stops` are stored."""
        if () not in states:
            states[()] = embed(self._params, batch, self._config, self._compute)
        place = max(n for n in range(len(keep) + 1) if keep[:n] in states)
        hidden_BTD = states[keep[:place]]
        layers_L = np.zeros(self.num_layers, np.int32)
        layers_L[: len(keep)] = keep
        for stop in sorted({n for n in stops if n > place} | {len(keep)}):
            hidden_BTD = advance(
                self._params, hidden_BTD, layers_L, place, stop, self._config, self._compute
            )
            self.blocks_run += stop - place
            place = stop
            if stop in stops:
                states[keep[:stop]] = hidden_BTD
        return hidden_BTD

    def _loss(self, hidden_BTD: jax.Array, batch: CalibrationBatch) -> jax.Array:
        total: jax.Array = loss_sum(self._params, hidden_BTD, batch, self._config, self._compute)
        return total

    def forget(self, useful: Collection[Keep]) -> None:
        """Drop the states with which none of the lists in `useful` begins."""
        begin = {keep[:length] for keep in useful for length in range(len(keep) + 1)}
        for states in self._states:
            for prefix in set(states) - begin:
                del states[prefix]

    def remembered(self) -> int:
        """How many states of the whole calibration set are held."""
        return len(self._states[0])

    def state_bytes(self) -> int:
        """Of one hidden state of the whole calibration set."""
        tokens = sum(math.prod(batch.tokens_BT.shape) for batch in self._batches)
        size: int = tokens * self._config.embed_dim * jnp.dtype(self._compute.dtype).itemsize
        return size


@functools.partial(jax.jit, static_argnames=("config", "compute"))
def embed(
    params: Params, batch: CalibrationBatch, config: ModelConfig, compute: Compute
) -> jax.Array:
    """What enters the first layer, hidden_BTD."""
    return decoder.parts(params, config, compute, positions(batch)).embed(batch.tokens_BT)


@functools.partial(jax.jit, static_argnames=("config", "compute"))
def advance(
    params: Params,
    hidden_BTD: jax.Array,
    layers_L: jax.Array,
    start: jax.Array,
    stop: jax.Array,
    config: ModelConfig,
    compute: Compute,
) -> jax.Array:
    """hidden_BTD after layers_L[start], …, layers_L[stop - 1]."""
    positions_BT = jnp.arange(hidden_BTD.shape[1], dtype=jnp.int32)[None]
    parts = decoder.parts(params, config, compute, positions_BT)

    def one(place: jax.Array, hidden_BTD: jax.Array) -> jax.Array:
        def pick(stacked: jax.Array) -> jax.Array:
            layer = layers_L[place]
            picked: jax.Array = jax.lax.dynamic_index_in_dim(stacked, layer, keepdims=False)
            return picked

        return parts.block(hidden_BTD, jax.tree.map(pick, parts.stack))

    last_BTD: jax.Array = jax.lax.fori_loop(start, stop, one, hidden_BTD)
    return last_BTD


@functools.partial(jax.jit, static_argnames=("config", "compute"))
def loss_sum(
    params: Params,
    hidden_BTD: jax.Array,
    batch: CalibrationBatch,
    config: ModelConfig,
    compute: Compute,
) -> jax.Array:
    """Σ of the nats of all predicted tokens, from what leaves the last layer."""
    parts = decoder.parts(params, config, compute, positions(batch))
    head = head_of(params, config)
    return cross_entropy(parts.finish(hidden_BTD), head, *predictions(batch))[0]


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many first elements two lists share."""
    for length, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return length
    return min(len(a), len(b))


def _minima(shared: Sequence[int]) -> set[int]:
    """The lengths at which a list and later ones part, given how far neighbours go together."""
    lengths: set[int] = set()
    together = shared[0]
    for length in shared:
        together = min(together, length)
        if not together:
            break
        lengths.add(together)
    return lengths
