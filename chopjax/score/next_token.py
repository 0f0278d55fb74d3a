"""What the next token is, from its logits: a model's rules, then the likeliest or a draw.

Axes: B rows, V vocabulary.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from chopjax.score.decoding import Rules

NO_RULES = Rules()


@dataclasses.dataclass(frozen=True)
class Sampling:
    """temperature: divides logits; 0 takes the likeliest token. top_p: of the likeliest tokens, so
    many are drawn from that their probabilities reach this (nucleus sampling, arXiv 1904.09751)."""

    temperature: float = 0.0
    top_p: float = 1.0


GREEDY = Sampling()


@dataclasses.dataclass(frozen=True)
class Choice:
    """How tokens are chosen: a program is compiled for each."""

    rules: Rules = NO_RULES
    sampling: Sampling = GREEDY


LIKELIEST = Choice()


def weights(
    logit_BV: jax.Array, choice: Choice, seen_BV: jax.Array | None, number_B: jax.Array
) -> jax.Array:
    """Logits of the distribution that the next token is drawn from: rules, temperature, top_p.

    seen_BV: which tokens a row has, None where no rule asks. number_B: tokens generated before it.
    """
    rules = choice.rules
    V = logit_BV.shape[-1]
    if seen_BV is not None:
        penalty = rules.repetition_penalty
        punished_BV = jnp.where(logit_BV < 0, logit_BV * penalty, logit_BV / penalty)
        logit_BV = jnp.where(seen_BV, punished_BV, logit_BV)
    for tokens, banned_B in (
        (rules.suppress_tokens, True),
        (rules.begin_suppress_tokens, number_B == 0),
        (rules.eos_token_id if rules.min_new_tokens else (), number_B < rules.min_new_tokens),
    ):
        known = [token for token in tokens if 0 <= token < V]
        if known:
            banned_B1 = jnp.broadcast_to(banned_B, number_B.shape)[:, None]
            without_BV = logit_BV.at[:, np.array(known)].set(-jnp.inf)
            logit_BV = jnp.where(banned_B1, without_BV, logit_BV)
    sampling = choice.sampling
    if not sampling.temperature:
        return logit_BV
    logit_BV = logit_BV / sampling.temperature
    if sampling.top_p < 1:
        ordered_BV = -jnp.sort(-logit_BV, axis=-1)
        probability_BV = jax.nn.softmax(ordered_BV, axis=-1)
        before_BV = jnp.cumsum(probability_BV, axis=-1) - probability_BV
        # The first is always one of them. Of equal logits, all that tie with the last are.
        within_BV = (before_BV < sampling.top_p).at[:, 0].set(True)
        least_B1 = jnp.where(within_BV, ordered_BV, jnp.inf).min(axis=-1, keepdims=True)
        logit_BV = jnp.where(logit_BV < least_B1, -jnp.inf, logit_BV)
    return logit_BV


def pick(
    weight_BV: jax.Array, choice: Choice, keys_B2: jax.Array | None, number_B: jax.Array
) -> jax.Array:
    """The next token of every row, int32; of equally likely ones the first.

    keys_B2: two words a row, of which a draw of a row's token depends on those and on the token's
    number alone, whatever else is in the batch. None where nothing is drawn.
    """
    if not choice.sampling.temperature:
        return jnp.argmax(weight_BV, axis=-1).astype(jnp.int32)
    assert keys_B2 is not None
    drawn_B = jax.vmap(jax.random.categorical)(draws(keys_B2, number_B), weight_BV)
    return drawn_B.astype(jnp.int32)


def draws(keys_B2: jax.Array, number_B: jax.Array, purpose: int = 0) -> jax.Array:
    """A random key for each row's token, by its number and what is to be drawn for it."""

    def one(key_2: jax.Array, number: jax.Array) -> jax.Array:
        key = jax.random.wrap_key_data(key_2, impl="threefry2x32")
        return jax.random.fold_in(jax.random.fold_in(key, number), purpose)

    return jax.vmap(one)(keys_B2, number_B)


def with_token(seen_BV: jax.Array | None, token_B: jax.Array) -> jax.Array | None:
    """Which tokens a row has, with one more."""
    if seen_BV is None:
        return None
    return seen_BV.at[jnp.arange(len(token_B)), token_B].set(True)
