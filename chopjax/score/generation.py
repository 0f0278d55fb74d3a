"""Greedy decoding with a key/value cache, many prompts at a time.

Prompts stand left-aligned in the first S slots of the cache, what is generated in the G slots
after them, at the same slot for every row: a row's unused prompt slots are masked, and positions
count on from its own length.

Axes: B rows, S prompt slots, G generated slots, V vocabulary, E table width, L layers, K heads,
H head size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from lm_eval.models.utils import normalize_gen_kwargs

from chopjax import interrupts
from chopjax.errors import UserError
from chopjax.launch import leader
from chopjax.models.compute import Compute
from chopjax.models.config import ModelConfig
from chopjax.models.decoder import Past, extend
from chopjax.models.head import head_of, logits
from chopjax.models.parameters import Params
from chopjax.models.tree_attention import Tree
from chopjax.score.decoding import GENERATION_CONFIG, REFUSED, Rules, read_rules, refused
from chopjax.score.engine import Engine
from chopjax.score.layout import row_length

NO_RULES = Rules()
STRIDE = 8  # tokens that the device generates between two looks of the host
Cache = tuple[jax.Array, jax.Array]  # keys and values, [L, B, S + G, K, H]


@dataclasses.dataclass(frozen=True)
class GenerationSettings:
    """What a task asks for: at most `most` tokens, up to the first of the strings `until`."""

    most: int
    until: tuple[str, ...]
    rules: Rules = NO_RULES

    @property
    def length(self) -> int:
        """Tokens to write: the model's own number goes before the task's, as in the harness."""
        return self.rules.max_new_tokens or self.most

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


# Without effect on greedy decoding.
INERT = {"do_sample", "temperature", "top_p", "top_k", "min_p", "typical_p", "use_cache"}
RULES = {field.name for field in dataclasses.fields(Rules)}


def read_settings(
    given: Mapping[str, Any], name: str, model: Mapping[str, Any] = MappingProxyType({})
) -> GenerationSettings:
    """A request's generation arguments as the harness reads them, 256 tokens by default.

    model: the options of generation_config.json, behind the request's. Raises UserError for
    sampling and for whatever else would change what is generated. name: the request, for the
    message.
    """
    read = dict(normalize_gen_kwargs(dict(given), 256))
    until, most = read.pop("until"), int(read.pop("max_gen_toks"))
    problems = sorted(set(read) - INERT - RULES - set(REFUSED)) + refused(read)
    if read.get("do_sample"):
        problems.append("do_sample")
    if problems:
        raise UserError(
            f"{name}: chopjax decodes greedily and does not know {', '.join(problems)} in the "
            "task's generation_kwargs"
        )
    if problems := refused({**model, **read}):
        raise UserError(
            f"{name}: chopjax decodes greedily and does not know {', '.join(problems)} of the "
            f"model's {GENERATION_CONFIG}, which would change the text; take it out of the file, "
            "or leave tasks that generate out"
        )
    rules = read_rules({**model, **read}, name)
    stops = tuple(stop for stop in until if stop)
    return GenerationSettings(most, stops, rules)


@dataclasses.dataclass(frozen=True)
class GenerationShape:
    rows: int
    prompt: int
    generated: int


def generate(
    engine: Engine,
    prompts: Sequence[np.ndarray],
    most: int,
    ends: Callable[[list[int]], bool],
    eos_ids: frozenset[int],
    rules: Rules = NO_RULES,
) -> Iterator[tuple[int, list[int]]]:
    """(prompt's index, its continuation) as batches are done, longest prompts first.

    A continuation has `most` tokens, or fewer: it stops with a token of eos_ids, and soon after
    `ends` has said yes to what there is. Prompts have at least one token, and with `most` more
    they fit the context length. Raises UserError for an id without a row in the embedding table.
    """
    engine.check_ids(prompts)
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    generated = -(-most // STRIDE) * STRIDE
    while order:
        shape = _shape(engine, len(prompts[order[0]]), generated, len(order))
        batch, order = order[: shape.rows], order[shape.rows :]
        given = [prompts[index] for index in batch], shape, most, eos_ids, rules
        leader.send("generate", *given)
        new_ids = generate_batch(engine, *given, ends)
        yield from zip(batch, new_ids, strict=True)


def _shape(engine: Engine, longest: int, generated: int, waiting: int) -> GenerationShape:
    budget = engine.budget
    prompt = row_length(longest, budget)
    rows = max(1, min(budget.tokens // (prompt + generated), 1 << (waiting - 1).bit_length()))
    rows = -(-rows // budget.shards) * budget.shards
    return GenerationShape(rows, prompt, generated)


def generate_batch(
    engine: Engine,
    prompts: list[np.ndarray],
    shape: GenerationShape,
    most: int,
    eos_ids: frozenset[int],
    rules: Rules = NO_RULES,
    ends: Callable[[list[int]], bool] = lambda ids: False,
) -> list[list[int]]:
    """A batch of `generate`. With several processes, the first one's `ends` decides for all."""
    tokens_BS = np.zeros((shape.rows, shape.prompt), np.int32)
    lengths_B = np.ones(shape.rows, np.int32)
    for row, prompt in enumerate(prompts):
        tokens_BS[row, : len(prompt)] = prompt
        lengths_B[row] = len(prompt)
    static = {
        "config": engine.config,
        "compute": engine.compute,
        "generated": shape.generated,
        "rules": rules,
    }
    lengths = engine.place(lengths_B)
    arguments = (engine.params, engine.place(tokens_BS), lengths)
    key = (shape, rules)
    token_B, cache, seen_BV = engine.program(prefill, key, arguments, static)
    generated: list[list[int]] = [[] for _ in prompts]
    open_rows = set(range(len(prompts)))
    for start in range(0, shape.generated, STRIDE):
        interrupts.check()
        step = (engine.params, token_B, lengths, cache, np.int32(start), seen_BV)
        new_BG, token_B, cache, seen_BV = engine.program(decode, key, step, static, donate="cache")
        new = np.asarray(new_BG)
        for row in sorted(open_rows):
            for token in new[row].tolist():
                generated[row].append(token)
                if token in eos_ids or len(generated[row]) == most:
                    open_rows.discard(row)
                    break
            if ends(generated[row]):
                open_rows.discard(row)
        if not leader.from_first(bool(open_rows)):
            break
    return generated


def _next(
    params: Params,
    config: ModelConfig,
    compute: Compute,
    hidden_BE: jax.Array,
    rules: Rules,
    seen_BV: jax.Array | None,
    number: jax.Array | int,
) -> jax.Array:
    """The most likely token that the rules leave, of equal ones the first.

    number: of tokens generated before it.
    """
    logit_BV = logits(head_of(params, config), hidden_BE)
    if seen_BV is not None:
        penalty = rules.repetition_penalty
        punished_BV = jnp.where(logit_BV < 0, logit_BV * penalty, logit_BV / penalty)
        logit_BV = jnp.where(seen_BV, punished_BV, logit_BV)
    for tokens, banned in (
        (rules.suppress_tokens, True),
        (rules.begin_suppress_tokens, number == 0),
        (rules.eos_token_id if rules.min_new_tokens else (), number < rules.min_new_tokens),
    ):
        known = [token for token in tokens if 0 <= token < config.vocab_size]
        if known:
            without_BV = logit_BV.at[:, np.array(known)].set(-jnp.inf)
            logit_BV = jnp.where(banned, without_BV, logit_BV)
    return jnp.argmax(logit_BV, axis=-1).astype(jnp.int32)


def prefill(
    params: Params,
    tokens_BS: jax.Array,
    lengths_B: jax.Array,
    config: ModelConfig,
    compute: Compute,
    generated: int,
    rules: Rules = NO_RULES,
) -> tuple[jax.Array, Cache, jax.Array | None]:
    """The first new token of every row, the cache with room for `generated` more, and which tokens
    a row has, [B, V], where the rules ask for it."""
    B, S = tokens_BS.shape
    slots_S = jnp.arange(S)
    positions_BS = jnp.broadcast_to(slots_S, (B, S))
    hidden_BSE, fresh = extend(params, config, compute, tokens_BS, positions_BS, Tree())
    last_B1E = jnp.take_along_axis(hidden_BSE, lengths_B[:, None, None] - 1, axis=1)
    room = ((0, 0), (0, 0), (0, generated), (0, 0), (0, 0))
    cache = jnp.pad(fresh[0], room), jnp.pad(fresh[1], room)
    seen_BV = None
    if rules.repetition_penalty != 1:
        real_BS = jnp.where(slots_S < lengths_B[:, None], tokens_BS, config.vocab_size)
        seen_BV = jnp.zeros((B, config.vocab_size), bool)
        seen_BV = seen_BV.at[jnp.arange(B)[:, None], real_BS].set(True, mode="drop")
    return _next(params, config, compute, last_B1E[:, 0], rules, seen_BV, 0), cache, seen_BV


def decode(
    params: Params,
    token_B: jax.Array,
    lengths_B: jax.Array,
    cache: Cache,
    start: jax.Array,
    seen_BV: jax.Array | None,
    config: ModelConfig,
    compute: Compute,
    generated: int,
    rules: Rules = NO_RULES,
) -> tuple[jax.Array, jax.Array, Cache, jax.Array | None]:
    """STRIDE tokens [B, STRIDE], the given one first; the one that comes after them; the cache;
    which tokens a row has, as `prefill` gives it.

    start: tokens generated before the given one.
    """
    slots_S = jnp.arange(cache[0].shape[2])  # of prompts and generated tokens
    prompt = slots_S.size - generated
    in_prompt_BS = slots_S < lengths_B[:, None]
    itself_B11 = jnp.ones((token_B.shape[0], 1, 1), bool)

    Carry = tuple[jax.Array, Cache, jax.Array | None]

    def step(carry: Carry, number: jax.Array) -> tuple[Carry, jax.Array]:
        token_B, cache, seen_BV = carry
        slot = prompt + number
        visible_BS = in_prompt_BS | ((slots_S >= prompt) & (slots_S < slot))
        positions_B1 = (lengths_B + number)[:, None]
        positions_BS = jnp.where(slots_S < prompt, slots_S, lengths_B[:, None] + slots_S - prompt)
        hidden_B1E, fresh = extend(
            params,
            config,
            compute,
            token_B[:, None],
            positions_B1,
            itself_B11,
            Past(*cache, visible_BS, positions_BS),
        )
        key, value = (
            jax.lax.dynamic_update_slice_in_dim(old, new, slot, axis=2)
            for old, new in zip(cache, fresh, strict=True)
        )
        if seen_BV is not None:
            seen_BV = seen_BV.at[jnp.arange(len(token_B)), token_B].set(True)
        hidden_BE = hidden_B1E[:, 0]
        following_B = _next(params, config, compute, hidden_BE, rules, seen_BV, number + 1)
        return (following_B, (key, value), seen_BV), token_B

    numbers = start + jnp.arange(STRIDE)
    carry, tokens_GB = jax.lax.scan(step, (token_B, cache, seen_BV), numbers)
    return tokens_GB.T, *carry
