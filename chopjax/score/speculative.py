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
from chopjax.score.next_token import Choice, draws, weights, with_token
from chopjax.score.steps import Cache, State, next_token, read
from chopjax.score.walk import LayerCache, Walk

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
    """One round: tokens [B, T], of which each row takes the first of a number of them [B]; the next
    round's state, before_B and caches.

    before_B: the token before state.token_B. A draft with a cache of its own reads both, since it
    has not read the first where all that it wrote was taken.
    """
    own = draft_cache is not None
    held = draft_cache or (cache[0][: draft.first], cache[1][: draft.first])
    tokens_BT = _unread(state, before_B) if own else state.token_B[:, None]
    start_B = state.length_B - tokens_BT.shape[1]
    hidden_BTE, held = read(draft_params, tokens_BT, start_B, held, draft.config, compute)
    drafted, weight_BV = next_token(draft_params, hidden_BTE[:, -1], state, draft.config, choice)

    def step(carry: tuple[State, Cache], _: None) -> tuple[Any, Any]:
        ahead, held = carry
        given = ahead.token_B[:, None], ahead.length_B - 1, held
        hidden_B1E, held = read(draft_params, *given, draft.config, compute)
        ahead, weight_BV = next_token(draft_params, hidden_B1E[:, 0], ahead, draft.config, choice)
        return (ahead, held), (ahead.token_B, weight_BV)

    (_, held), (more_KB, more_KBV) = jax.lax.scan(step, (drafted, held), length=draft.length - 1)
    drafted_KB = jnp.concatenate([drafted.token_B[None], more_KB])
    weight_KBV = jnp.concatenate([weight_BV[None], more_KBV])
    tokens_BT = jnp.concatenate([state.token_B[:, None], drafted_KB.T], axis=1)
    hidden_BTE, cache = read(params, tokens_BT, state.length_B - 1, cache, config, compute)
    judged = judge(params, hidden_BTE, state, drafted_KB, weight_KBV, config, choice)
    return *judged, cache, held if own else None


def speculate_walking(
    walk: Walk,
    draft_walk: Walk,
    given: tuple[State, jax.Array, list[LayerCache], list[LayerCache] | None],
    choice: Choice,
    draft: DraftShape,
) -> tuple[Any, ...]:
    """The same, layer by layer: a draft of the model's first layers works in its own cache, where
    the model then writes the same tokens. given: from state to draft_cache."""
    state, before_B, cache, draft_cache = given
    held = cache[: draft.first] if draft_cache is None else draft_cache
    tokens_BT = state.token_B[:, None] if draft_cache is None else _unread(state, before_B)
    ahead, drafted, likely = state, [], []
    start_B = state.length_B - tokens_BT.shape[1]
    for _ in range(draft.length):
        hidden, held = draft_walk.read(tokens_BT, start_B, held)
        ahead, weight_BV = draft_walk.next_token(hidden, tokens_BT.shape[1] - 1, ahead, choice)
        drafted.append(ahead.token_B)
        likely.append(weight_BV)
        tokens_BT, start_B = ahead.token_B[:, None], ahead.length_B - 1
    if draft_cache is None:
        cache = [*held, *cache[draft.first :]]
    tokens_BT = jnp.stack([state.token_B, *drafted], axis=1)
    hidden, cache = walk.read(tokens_BT, state.length_B - 1, cache)
    judged = walk.run(judge, hidden, state, jnp.stack(drafted), jnp.stack(likely), choice=choice)
    return *judged, cache, held if draft_cache is not None else None


def _unread(state: State, before_B: jax.Array) -> jax.Array:
    return jnp.stack([before_B, state.token_B], axis=1)


def judge(
    params: Params,
    hidden_BTE: jax.Array,
    state: State,
    drafted_KB: jax.Array,
    weight_KBV: jax.Array,
    config: ModelConfig,
    choice: Choice,
) -> tuple[jax.Array, jax.Array, State, jax.Array]:
    """What of a draft is taken: tokens [B, T], how many of them [B], the state behind them, and the
    token before its last. weight_KBV: the logits that each token was drafted by. params: `blocks`
    is not read."""
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

    def at(tokens: jax.Array, place_B: jax.Array) -> jax.Array:
        return jnp.take_along_axis(tokens, place_B[:, None], axis=1)[:, 0]

    last_B = at(tokens_BT, taken_B - 1)
    before_B = at(jnp.concatenate([state.token_B[:, None], tokens_BT], axis=1), taken_B - 1)
    seen_BV = state.seen_BV
    if seen_BV is not None:
        is_taken_BT = jnp.arange(tokens_BT.shape[1]) < taken_B[:, None]
        taken_BT = jnp.where(is_taken_BT, tokens_BT, config.vocab_size)
        seen_BV = seen_BV.at[jnp.arange(len(last_B))[:, None], taken_BT].set(True, mode="drop")
    state = state._replace(token_B=last_B, length_B=state.length_B + taken_B, seen_BV=seen_BV)
    return tokens_BT, taken_B, state, before_B


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
