"""Decoding on a processor: layers that have arrays of their own, a few a program.

A scan takes a layer's weights and its part of the cache out of their stacks, and on processors that
copies them: the bytes of a token are moved three times. Here a layer's arrays are views of the
stack, and a program does a few of them at a time; a second one does what is left of the last few.

Axes: as in steps.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from chopjax.models.compute import Compute
from chopjax.models.config import ModelConfig
from chopjax.models.decoder import Layer, extension
from chopjax.models.parameters import Params
from chopjax.models.tree_attention import LayerPast, Tree
from chopjax.score import steps
from chopjax.score.engine import Engine
from chopjax.score.next_token import Choice
from chopjax.score.steps import STRIDE, State

# Keys and values, [B, K, S, H]: a head's slots lie together, and no product turns them.
LayerCache = tuple[jax.Array, jax.Array]
TOGETHER = 10  # layers that a program does: one by one, a token takes 4 to 10 % longer


def walks(engine: Engine) -> bool:
    """Whether this is the way to decode with these weights."""
    return engine.mesh is None and jax.default_backend() == "cpu"


def of_engine(engine: Engine) -> Walk:
    """Its model's, made once."""
    if engine.walk is None:
        views = jax.tree.map(np.asarray, engine.params["blocks"])
        engine.walk = Walk(
            engine,
            [
                # Of an array that lies on a boundary of 64 bytes this is no copy.
                jax.tree.map(lambda w, n=number: jax.device_put(w[n]), views)
                for number in range(engine.config.num_layers)
            ],
        )
    walk: Walk = engine.walk
    return walk


class Walk:
    """A model whose layers are apart. blocks: parameters of each; outer: what is beside them."""

    def __init__(self, engine: Engine, blocks: Sequence[Params]):
        self.blocks = blocks
        kinds = [engine.config.kinds.index(layer) for layer in engine.config.layers]
        self.layers = [
            Layer(block, jnp.int32(kind)) for block, kind in zip(blocks, kinds, strict=True)
        ]
        self._engine = engine
        self.outer = {name: part for name, part in engine.params.items() if name != "blocks"}
        self._static = {"config": engine.config, "compute": engine.compute}

    def some(self, engine: Engine, keep: Sequence[int]) -> Walk:
        """Some of the same layers, for the engine of that model."""
        return Walk(engine, [self.blocks[number] for number in keep])

    def empty_cache(self, rows: int, slots: int) -> list[LayerCache]:
        config = self._engine.config
        shape = (rows, config.num_kv_heads, slots, config.head_dim)
        dtype = self._engine.compute.dtype
        return [(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in self.blocks]

    def prefill(
        self,
        tokens_BS: np.ndarray,
        length_B: np.ndarray,
        keys_B2: np.ndarray | None,
        slots: int,
        choice: Choice,
    ) -> tuple[State, list[LayerCache]]:
        """See steps.prefill."""
        run, key = self._engine.program, tokens_BS.shape
        hidden = run(_enter, key, (self.outer, tokens_BS, np.int32(0)), self._static)
        cache = []
        static = self._static | {"slots": slots}
        for layer in self.layers:
            hidden, held = run(_first_layer, (key, slots), (layer, hidden), static)
            cache.append(held)
        given = self.outer, hidden, tokens_BS, length_B, keys_B2
        static = self._static | {"choice": choice}
        state: State = run(_first_token, (key, choice), given, static)
        return state, cache

    def decode(
        self, state: State, cache: list[LayerCache], choice: Choice
    ) -> tuple[jax.Array, State, list[LayerCache]]:
        """See steps.decode. The cache is used up."""
        tokens = []
        for _ in range(STRIDE):
            tokens_B1, start_B = state.token_B[:, None], state.length_B - 1
            hidden, cache = self.read(tokens_B1, start_B, cache)
            state, _ = self.next_token(hidden, 0, state, choice)
            tokens.append(state.token_B)
        return jnp.stack(tokens, axis=1), state, cache

    def next_token(
        self, hidden_BTE: jax.Array, place: int, state: State, choice: Choice
    ) -> tuple[State, jax.Array]:
        """See steps.next_token; the hidden states are those of one place of T."""
        found: tuple[State, jax.Array]
        found = self.run(_next_token, hidden_BTE, state, choice=choice, place=place)
        return found

    def run(self, function: Any, *given: Any, **static: Any) -> Any:
        """A program over what is beside the layers: function(outer, …, config)."""
        shapes = [leaf.shape for leaf in jax.tree.leaves(given)]
        key = (tuple(shapes), tuple(static.items()))
        static["config"] = self._engine.config
        return self._engine.program(function, key, (self.outer, *given), static)

    def read(
        self, tokens_BT: jax.Array, start_B: jax.Array, cache: list[LayerCache]
    ) -> tuple[jax.Array, list[LayerCache]]:
        """See steps.read. The cache is used up."""
        run = self._engine.program
        shape = tokens_BT.shape
        hidden = run(_enter, shape, (self.outer, tokens_BT, start_B), self._static)
        key = (shape, *(held.shape for held, _ in cache[:1]))
        fresh: list[LayerCache] = []
        for first in range(0, len(self.layers), TOGETHER):
            layers, held = (some[first : first + TOGETHER] for some in (self.layers, cache))
            given = layers, hidden, start_B, held
            hidden, new = run(_layers, (len(layers), key), given, self._static)
            fresh += new
        cache = run(_written, key, (cache, fresh, start_B), {}, donate="cache")
        hidden = run(_leave, shape, (self.outer, hidden), self._static)
        return hidden, cache


def _enter(
    outer: Params, tokens_BT: jax.Array, start_B: jax.Array, config: ModelConfig, compute: Compute
) -> jax.Array:
    B, T = tokens_BT.shape
    places_BT = jnp.broadcast_to(start_B, (B,))[:, None] + jnp.arange(T)
    return extension(outer, config, compute, places_BT, Tree()).embed(tokens_BT)


def _first_layer(
    layer: Layer, hidden_BSD: jax.Array, config: ModelConfig, compute: Compute, slots: int
) -> tuple[jax.Array, LayerCache]:
    B, S = hidden_BSD.shape[:2]
    positions_BS = jnp.broadcast_to(jnp.arange(S), (B, S))
    taken = extension({}, config, compute, positions_BS, Tree())
    hidden_BSD, fresh = taken.block(hidden_BSD, layer, None)
    room = ((0, 0), (0, 0), (0, slots - hidden_BSD.shape[1]), (0, 0))
    key_BKSH, value_BKSH = (jnp.pad(new.swapaxes(1, 2), room) for new in fresh)
    return hidden_BSD, (key_BKSH, value_BKSH)


def _layers(
    layers: Sequence[Layer],
    hidden_BTD: jax.Array,
    start_B: jax.Array,
    cache: Sequence[LayerCache],
    config: ModelConfig,
    compute: Compute,
) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
    """Also gives the tokens' keys and values by layers, [B, T, K, H]. To write them here, too,
    would make XLA copy what it still has to read."""
    slots = cache[0][0].shape[2]
    places_BT, causal_BTT, seen_BS, slots_BS = steps.behind(hidden_BTD[..., 0], start_B, slots)
    taken = extension({}, config, compute, places_BT, causal_BTT)
    fresh = []
    for layer, held in zip(layers, cache, strict=True):
        # Turned here and back there: the compiler drops both.
        key_BSKH, value_BSKH = (array.swapaxes(1, 2) for array in held)
        past = LayerPast(key_BSKH, value_BSKH, seen_BS, slots_BS)
        hidden_BTD, new = taken.block(hidden_BTD, layer, past)
        fresh.append(new)
    return hidden_BTD, fresh


def _written(
    cache: list[LayerCache], fresh: list[tuple[jax.Array, jax.Array]], start_B: jax.Array
) -> list[LayerCache]:
    """The cache with new tokens from slot start_B on; those beyond its end are left out."""

    def one(held_BKSH: jax.Array, new_BTKH: jax.Array) -> jax.Array:
        B, T = new_BTKH.shape[:2]
        places_BT = start_B[:, None] + jnp.arange(T)
        return held_BKSH.at[jnp.arange(B)[:, None], :, places_BT].set(new_BTKH, mode="drop")

    return [
        (one(key, new_key), one(value, new_value))
        for (key, value), (new_key, new_value) in zip(cache, fresh, strict=True)
    ]


def _leave(
    outer: Params, hidden_BTD: jax.Array, config: ModelConfig, compute: Compute
) -> jax.Array:
    places_1T = jnp.arange(hidden_BTD.shape[1])[None]
    return extension(outer, config, compute, places_1T, Tree()).finish(hidden_BTD)


def _first_token(
    outer: Params,
    hidden_BSD: jax.Array,
    tokens_BS: jax.Array,
    length_B: jax.Array,
    keys_B2: jax.Array | None,
    config: ModelConfig,
    compute: Compute,
    choice: Choice,
) -> State:
    hidden_BSE = _leave(outer, hidden_BSD, config, compute)
    return steps.first_token(outer, hidden_BSE, tokens_BS, length_B, keys_B2, config, choice)


def _next_token(
    outer: Params,
    hidden_BTE: jax.Array,
    state: State,
    config: ModelConfig,
    choice: Choice,
    place: int,
) -> tuple[State, jax.Array]:
    return steps.next_token(outer, hidden_BTE[:, place], state, config, choice)
