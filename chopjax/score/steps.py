"""The programs of decoding with a key/value cache, all layers in one scan.

A row's tokens lie in the cache from its first slot on, prompt and new ones alike, so that a token's
slot is its position. The last token of a row is not in the cache: the next step reads it.

Axes: B rows, T new tokens, S slots, V vocabulary, E table width, L layers, K heads, H head size.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from chopjax.models.compute import Compute
from chopjax.models.config import ModelConfig
from chopjax.models.decoder import Past, extend
from chopjax.models.head import head_of, logits
from chopjax.models.parameters import Params
from chopjax.models.tree_attention import Tree
from chopjax.score.next_token import LIKELIEST, Choice, pick, weights, with_token

STRIDE = 8  # tokens that are generated between two looks of the host
Cache = tuple[jax.Array, jax.Array]  # keys and values, [L, B, S, K, H]


class State(NamedTuple):
    """Of every row, between two steps. length_B counts the prompt's tokens and the new ones, of
    which token_B is the last; prompt_B the prompt's. seen_BV: tokens that a row has, None where no
    rule asks. keys_B2: see `next_token.pick`."""

    token_B: jax.Array
    length_B: jax.Array
    prompt_B: jax.Array
    keys_B2: jax.Array | None
    seen_BV: jax.Array | None


def prefill(
    params: Params,
    tokens_BS: jax.Array,
    length_B: jax.Array,
    keys_B2: jax.Array | None,
    config: ModelConfig,
    compute: Compute,
    slots: int,
    choice: Choice = LIKELIEST,
) -> tuple[State, Cache]:
    """Rows with their first new token, and the cache, which has so many slots."""
    positions_BS = jnp.broadcast_to(jnp.arange(tokens_BS.shape[1]), tokens_BS.shape)
    hidden_BSE, fresh = extend(params, config, compute, tokens_BS, positions_BS, Tree())
    room = ((0, 0), (0, 0), (0, slots - tokens_BS.shape[1]), (0, 0), (0, 0))
    cache = jnp.pad(fresh[0], room), jnp.pad(fresh[1], room)
    return first_token(params, hidden_BSE, tokens_BS, length_B, keys_B2, config, choice), cache


def first_token(
    params: Params,
    hidden_BSE: jax.Array,
    tokens_BS: jax.Array,
    length_B: jax.Array,
    keys_B2: jax.Array | None,
    config: ModelConfig,
    choice: Choice,
) -> State:
    """Behind each row's prompt. params: `blocks` is not read."""
    B, S = tokens_BS.shape
    last_B1E = jnp.take_along_axis(hidden_BSE, length_B[:, None, None] - 1, axis=1)
    seen_BV: jax.Array | None = None
    if choice.rules.repetition_penalty != 1:
        real_BS = jnp.where(jnp.arange(S) < length_B[:, None], tokens_BS, config.vocab_size)
        nothing_BV = jnp.zeros((B, config.vocab_size), bool)
        seen_BV = nothing_BV.at[jnp.arange(B)[:, None], real_BS].set(True, mode="drop")
    nobody_B = jnp.zeros_like(length_B)
    before = State(nobody_B, length_B, length_B, keys_B2, seen_BV)
    return next_token(params, last_B1E[:, 0], before, config, choice)[0]


def next_token(
    params: Params, hidden_BE: jax.Array, state: State, config: ModelConfig, choice: Choice
) -> tuple[State, jax.Array]:
    """The state with one more token, which the last one's hidden state gives, and the logits [B, V]
    that it was chosen by. params: `blocks` is not read."""
    logit_BV = logits(head_of(params, config), hidden_BE)
    number_B = state.length_B - state.prompt_B
    weight_BV = weights(logit_BV, choice, state.seen_BV, number_B)
    token_B = pick(weight_BV, choice, state.keys_B2, number_B)
    seen_BV = with_token(state.seen_BV, token_B)
    state = state._replace(token_B=token_B, length_B=state.length_B + 1, seen_BV=seen_BV)
    return state, weight_BV


def decode(
    params: Params,
    state: State,
    cache: Cache,
    config: ModelConfig,
    compute: Compute,
    choice: Choice = LIKELIEST,
) -> tuple[jax.Array, State, Cache]:
    """The next STRIDE tokens [B, STRIDE] of every row."""

    def step(carry: tuple[State, Cache], _: None) -> tuple[tuple[State, Cache], jax.Array]:
        state, cache = carry
        tokens_B1, start_B = state.token_B[:, None], state.length_B - 1
        hidden_B1E, cache = read(params, tokens_B1, start_B, cache, config, compute)
        state = next_token(params, hidden_B1E[:, 0], state, config, choice)[0]
        return (state, cache), state.token_B

    (state, cache), tokens_GB = jax.lax.scan(step, (state, cache), length=STRIDE)
    return tokens_GB.T, state, cache


def read(
    params: Params,
    tokens_BT: jax.Array,
    start_B: jax.Array,
    cache: Cache,
    config: ModelConfig,
    compute: Compute,
) -> tuple[jax.Array, Cache]:
    """Hidden states [B, T, E] of each row's next tokens, and the cache with them.

    start_B: the slot of the first of them; what the cache has from there on is not read. What does
    not fit the cache is left out of it.
    """
    places_BT, causal_BTT, seen_BS, slots_BS = behind(tokens_BT, start_B, cache[0].shape[2])
    past = Past(*cache, seen_BS, slots_BS)
    hidden_BTE, fresh = extend(params, config, compute, tokens_BT, places_BT, causal_BTT, past)
    rows_B1 = jnp.arange(len(tokens_BT))[:, None]
    key, value = (
        old.at[:, rows_B1, places_BT].set(new, mode="drop")
        for old, new in zip(cache, fresh, strict=True)
    )
    return hidden_BTE, (key, value)


def behind(
    tokens_BT: jax.Array, start_B: jax.Array, slots: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Of tokens from slot start_B on: their places, who sees whom, which slots before they see, and
    the positions of all slots."""
    B, T = tokens_BT.shape
    slots_BS = jnp.broadcast_to(jnp.arange(slots), (B, slots))
    causal_BTT = jnp.broadcast_to(jnp.tril(jnp.ones((T, T), bool)), (B, T, T))
    return start_B[:, None] + jnp.arange(T), causal_BTT, slots_BS < start_B[:, None], slots_BS
