"""Speculative decoding: a draft writes some tokens, the model reads them in one pass and keeps what
it would have written itself (arXiv 2211.17192, 2302.01318).

Greedy text is the model's own; with a temperature, the distribution is the model's own.

Axes: B rows, K drafted tokens, T = K + 1, V vocabulary, L layers, S slots, E table width.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from chopjax.models.compute import Compute
from chopjax.models.config import ModelConfig
from chopjax.models.head import head_of, logits
from chopjax.models.parameters import Params
from chopjax.score.generation import Cache, State, read
from chopjax.score.next_token import Choice, draws, pick, weights, with_token

ACCEPT, REPLACE = 1, 2  # what a draw is for, beside the draft's own (0)


@dataclasses.dataclass(frozen=True)
class DraftShape:
    """What of a draft a program is compiled for.

    first: how many layers of the model it is, from the first on, whose cache it then reads; 0 where
    it is anything else, with a cache of its own. length: K.
    """

    config: ModelConfig
    first: int
    length: int


def speculate(
    params: Params,
    draft_params: Params,
    state: State,
    before_B: jax.Array,
    cache: Cache,
    draft_cache: Cache | None,
    config: ModelConfig,
    compute: Compute,
    choice: Choice,
    draft: DraftShape,
) -> tuple[jax.Array, jax.Array, State, jax.Array, Cache, Cache | None]:
    """One round: tokens [B, T], of which each row takes the first of a number of them [B].

    before_B: the token before state.token_B. Both are read by the draft, which may not have read
    the first, where all that it wrote was taken. Also gives the next round's state, before_B and
    caches.
    """
    own = draft_cache is not None
    held = draft_cache or (cache[0][: draft.first], cache[1][: draft.first])
    drafted_KB, weight_KBV, held = _draft(
        draft_params, compute, choice, draft, state, before_B, held
    )
    tokens_BT = jnp.concatenate([state.token_B[:, None], drafted_KB.T], axis=1)
    hidden_BTE, cache = read(params, config, compute, tokens_BT, state.length_B - 1, cache)
    logit_BTV = logits(head_of(params, config), hidden_BTE)

    def step(carry: Any, given: Any) -> tuple[Any, jax.Array]:
        seen_BV, number_B = carry
        logit_BV, next_B = given
        weight_BV = weights(logit_BV, choice, seen_BV, number_B)
        return (with_token(seen_BV, next_B), number_B + 1), weight_BV

    number_B = state.length_B - state.prompt_B
    # What each position would write, had the draft been right so far.
    following_TB = jnp.concatenate([drafted_KB, drafted_KB[-1:]])
    given = jnp.moveaxis(logit_BTV, 1, 0), following_TB
    _, weight_TBV = jax.lax.scan(step, (state.seen_BV, number_B), given)
    tokens_TB, taken_B = _accepted(weight_TBV, drafted_KB, weight_KBV, choice, state, number_B)
    tokens_BT = tokens_TB.T

    last_B = jnp.take_along_axis(tokens_BT, taken_B[:, None] - 1, axis=1)[:, 0]
    with_last_BT = jnp.concatenate([state.token_B[:, None], tokens_BT], axis=1)
    before_B = jnp.take_along_axis(with_last_BT, taken_B[:, None] - 1, axis=1)[:, 0]
    seen_BV = state.seen_BV
    if seen_BV is not None:
        rows_B1, is_taken_BT = jnp.arange(len(last_B))[:, None], jnp.arange(draft.length + 1)
        is_taken_BT = is_taken_BT < taken_B[:, None]
        taken_BT = jnp.where(is_taken_BT, tokens_BT, config.vocab_size)
        seen_BV = seen_BV.at[rows_B1, taken_BT].set(True, mode="drop")
    state = state._replace(token_B=last_B, length_B=state.length_B + taken_B, seen_BV=seen_BV)
    return tokens_BT, taken_B, state, before_B, cache, held if own else None


def _draft(
    params: Params,
    compute: Compute,
    choice: Choice,
    draft: DraftShape,
    state: State,
    before_B: jax.Array,
    cache: Cache,
) -> tuple[jax.Array, jax.Array, Cache]:
    """Drafted tokens [K, B], the logits that each was drawn by [K, B, V], and the draft's cache."""
    config = draft.config
    pair_B2 = jnp.stack([before_B, state.token_B], axis=1)
    hidden_B2E, cache = read(params, config, compute, pair_B2, state.length_B - 2, cache)

    def choose(hidden_BE: jax.Array, seen_BV: Any, number_B: jax.Array) -> tuple[Any, Any]:
        logit_BV = logits(head_of(params, config), hidden_BE)
        weight_BV = weights(logit_BV, choice, seen_BV, number_B)
        token_B = pick(weight_BV, choice, state.keys_B2, number_B)
        return (token_B, with_token(seen_BV, token_B)), weight_BV

    def step(carry: Any, _: None) -> tuple[Any, Any]:
        token_B, seen_BV, length_B, cache = carry
        start_B = length_B - 1
        hidden_B1E, cache = read(params, config, compute, token_B[:, None], start_B, cache)
        (token_B, seen_BV), weight_BV = choose(hidden_B1E[:, 0], seen_BV, length_B - state.prompt_B)
        return (token_B, seen_BV, length_B + 1, cache), (token_B, weight_BV)

    number_B = state.length_B - state.prompt_B
    (token_B, seen_BV), weight_BV = choose(hidden_B2E[:, 1], state.seen_BV, number_B)
    carry = (token_B, seen_BV, state.length_B + 1, cache)
    carry, (more_B, more_BV) = jax.lax.scan(step, carry, length=draft.length - 1)
    drafted_KB = jnp.concatenate([token_B[None], more_B])
    return drafted_KB, jnp.concatenate([weight_BV[None], more_BV]), carry[3]


def _accepted(
    weight_TBV: jax.Array,
    drafted_KB: jax.Array,
    weight_KBV: jax.Array,
    choice: Choice,
    state: State,
    number_B: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Tokens [T, B], and how many of them each row takes [B]: those that were drafted up to the
    first that is refused, and one more of the model's own."""
    T = len(weight_TBV)
    K = T - 1
    if not choice.sampling.temperature:
        own_TB = jnp.argmax(weight_TBV, axis=-1).astype(jnp.int32)
        accepted_KB = own_TB[:K] == drafted_KB
        return own_TB, 1 + jnp.cumprod(accepted_KB, axis=0).sum(axis=0)
    assert state.keys_B2 is not None
    keys_B2 = state.keys_B2
    p_TBV, q_KBV = jax.nn.softmax(weight_TBV, axis=-1), jax.nn.softmax(weight_KBV, axis=-1)

    def of_drafted(probability_KBV: jax.Array) -> jax.Array:
        return jnp.take_along_axis(probability_KBV, drafted_KB[..., None], axis=-1)[..., 0]

    def uniform(offset: jax.Array) -> jax.Array:
        return jax.vmap(jax.random.uniform)(draws(keys_B2, number_B + offset, ACCEPT))

    u_KB = jax.vmap(uniform)(jnp.arange(K))
    accepted_KB = u_KB * of_drafted(q_KBV) < of_drafted(p_TBV[:K])
    count_B = jnp.cumprod(accepted_KB, axis=0).sum(axis=0)
    # What the model would still write where the draft's token was refused: norm(max(p - q, 0)).
    # Behind the last drafted token there is no draft, and it is p.
    rest_TBV = p_TBV.at[:K].add(-q_KBV)
    rest_BV = jnp.take_along_axis(rest_TBV, count_B[None, :, None], axis=0)[0]
    # Of two distributions that are equal up to rounding nothing may be left.
    p_BV = jnp.take_along_axis(p_TBV, count_B[None, :, None], axis=0)[0]
    rest_BV = jnp.maximum(rest_BV, 0)
    rest_BV = jnp.where(rest_BV.any(axis=-1, keepdims=True), rest_BV, p_BV)
    keys_B = draws(keys_B2, number_B + count_B, REPLACE)
    own_B = jax.vmap(jax.random.categorical)(keys_B, jnp.log(rest_BV)).astype(jnp.int32)
    tokens_TB = jnp.concatenate([drafted_KB, drafted_KB[-1:]])
    tokens_TB = tokens_TB.at[count_B, jnp.arange(len(count_B))].set(own_B)
    return tokens_TB, 1 + count_B
