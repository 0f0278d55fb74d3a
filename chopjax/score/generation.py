"""Decoding with a key/value cache, many prompts at a time.

A row's tokens lie in the cache from its first slot on, prompt and new ones alike, so that a token's
slot is its position. The last token of a row is not in the cache: the next step reads it.

Axes: B rows, T new tokens, S slots, V vocabulary, E table width, L layers, K heads, H head size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

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
from chopjax.score.decoding import GENERATION_CONFIG, REFUSED, Rules, read_rules, refused
from chopjax.score.engine import Engine
from chopjax.score.next_token import (
    LIKELIEST,
    NO_RULES,
    Choice,
    pick,
    weights,
    with_token,
)

STRIDE = 8  # tokens that the device generates between two looks of the host
SHORTEST = 32  # slots that a prompt is given at least
Cache = tuple[jax.Array, jax.Array]  # keys and values, [L, B, S, K, H]


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
class Asked:
    """What is wanted of every prompt.

    most: new tokens. eos_ids: end a text. seed: of draws; each prompt has draws of its own, by its
    number: numbers, or its place among the prompts.
    """

    most: int
    eos_ids: frozenset[int] = frozenset()
    choice: Choice = LIKELIEST
    seed: int = 0
    numbers: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class GenerationShape:
    """prompt: slots that prompts may fill. slots: of the cache in all."""

    rows: int
    prompt: int
    slots: int


class State(NamedTuple):
    """Of every row, between two steps. length_B counts the prompt's tokens and the new ones, of
    which token_B is the last; prompt_B the prompt's. seen_BV: tokens that a row has, None where no
    rule asks. keys_B2: see `next_token.pick`."""

    token_B: jax.Array
    length_B: jax.Array
    prompt_B: jax.Array
    keys_B2: jax.Array | None
    seen_BV: jax.Array | None


# A row's new ids as they come; whether what it has is enough.
Ends = Callable[[int, list[int]], bool]


def never(row: int, ids: list[int]) -> bool:
    return False


def generate(
    engine: Engine, prompts: Sequence[np.ndarray], asked: Asked, ends: Ends = never
) -> Iterator[tuple[int, list[int]]]:
    """(prompt's index, its continuation) as batches are done, longest prompts first.

    A continuation has `most` tokens, or fewer: it stops with a token of eos_ids, and soon after
    `ends` (of the prompt's index and its new ids so far) has said yes. Prompts have at least one
    token, and with `most` more they fit the context length. Raises UserError for an id without a
    row in the embedding table.
    """
    engine.check_ids(prompts)
    for batch, shape in batches(engine, [len(prompt) for prompt in prompts], asked.most):
        given = [prompts[index] for index in batch], batch, shape, asked
        leader.send("generate", *given)
        new_ids = generate_batch(engine, *given, ends)
        yield from zip(batch, new_ids, strict=True)


def batches(
    engine: Engine, lengths: Sequence[int], beyond: int
) -> Iterator[tuple[list[int], GenerationShape]]:
    """Prompts by index, longest first, and the shape that each batch is computed in.

    beyond: slots behind a prompt. Slots and rows are powers of two, so that prompts of many lengths
    share few programs: compiling one takes as long as some hundred steps.
    """
    budget = engine.budget
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    while order:
        prompt = max(SHORTEST, _power(lengths[order[0]]))
        slots = prompt + -(-beyond // SHORTEST) * SHORTEST
        most = 1 << max(budget.tokens // slots, 1).bit_length() - 1
        rows = min(most, _power(len(order)))
        rows = -(-rows // budget.shards) * budget.shards
        yield order[:rows], GenerationShape(rows, prompt, slots)
        order = order[rows:]


def _power(least: int) -> int:
    return 1 << (least - 1).bit_length()


def generate_batch(
    engine: Engine,
    prompts: list[np.ndarray],
    numbers: list[int],
    shape: GenerationShape,
    asked: Asked,
    ends: Ends = never,
) -> list[list[int]]:
    """A batch of `generate`. With several processes, the first one's `ends` decides for all."""
    rows = Rows(numbers, asked, ends)
    state, cache = begin(engine, prompts, numbers, shape, asked)
    static = {"config": engine.config, "compute": engine.compute, "choice": asked.choice}
    first = np.asarray(state.token_B)
    rows.add([[token] for token in first.tolist()])
    while leader.from_first(rows.open()):
        interrupts.check()
        step = (engine.params, state, cache)
        key = (shape, asked.choice)
        new_BG, state, cache = engine.program(decode, key, step, static, donate="cache")
        rows.add(np.asarray(new_BG).tolist())
    return rows.ids


class Rows:
    """The new ids of a batch's prompts, and which of them go on."""

    def __init__(self, numbers: Sequence[int], asked: Asked, ends: Ends):
        self.ids: list[list[int]] = [[] for _ in numbers]
        self._numbers, self._asked, self._ends = numbers, asked, ends
        self._open = set(range(len(numbers)))

    def open(self) -> bool:
        return bool(self._open)

    def is_open(self, row: int) -> bool:
        return row in self._open

    def add(self, new: Sequence[Sequence[int]]) -> None:
        """new: by row what it wrote; nobody hears of what is behind its end."""
        for row in sorted(self._open):
            ids = self.ids[row]
            for token in new[row]:
                ids.append(token)
                if token in self._asked.eos_ids or len(ids) == self._asked.most:
                    self._open.discard(row)
                    break
            if self._ends(self._numbers[row], ids):
                self._open.discard(row)


def begin(
    engine: Engine,
    prompts: Sequence[np.ndarray],
    numbers: Sequence[int],
    shape: GenerationShape,
    asked: Asked,
) -> tuple[State, Cache]:
    """Read the prompts. Rows without one have a single token, and nobody looks at them."""
    tokens_BS = np.zeros((shape.rows, shape.prompt), np.int32)
    length_B = np.ones(shape.rows, np.int32)
    keys_B2 = None
    if asked.choice.sampling.temperature:
        keys_B2 = np.zeros((shape.rows, 2), np.uint32)
        keys_B2[:, 0] = asked.seed
    for row, (prompt, number) in enumerate(zip(prompts, numbers, strict=True)):
        tokens_BS[row, : len(prompt)] = prompt
        length_B[row] = len(prompt)
        if keys_B2 is not None:
            keys_B2[row, 1] = asked.numbers[number] if asked.numbers else number
    static = {
        "config": engine.config,
        "compute": engine.compute,
        "choice": asked.choice,
        "slots": shape.slots,
    }
    keys = None if keys_B2 is None else engine.place(keys_B2)
    arguments = (engine.params, engine.place(tokens_BS), engine.place(length_B), keys)
    state, cache = engine.program(prefill, (shape, asked.choice), arguments, static)
    return state, cache


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
    B, S = tokens_BS.shape
    slots_S = jnp.arange(S)
    causal_BSS = jnp.broadcast_to(slots_S <= slots_S[:, None], (B, S, S))
    positions_BS = jnp.broadcast_to(slots_S, (B, S))
    hidden_BSE, fresh = extend(params, config, compute, tokens_BS, positions_BS, causal_BSS)
    last_B1E = jnp.take_along_axis(hidden_BSE, length_B[:, None, None] - 1, axis=1)
    room = ((0, 0), (0, 0), (0, slots - S), (0, 0), (0, 0))
    cache = jnp.pad(fresh[0], room), jnp.pad(fresh[1], room)
    seen_BV = None
    if choice.rules.repetition_penalty != 1:
        real_BS = jnp.where(slots_S < length_B[:, None], tokens_BS, config.vocab_size)
        seen_BV = jnp.zeros((B, config.vocab_size), bool)
        seen_BV = seen_BV.at[jnp.arange(B)[:, None], real_BS].set(True, mode="drop")
    number_B = jnp.zeros_like(length_B)
    logit_BV = logits(head_of(params, config), last_B1E[:, 0])
    token_B = pick(weights(logit_BV, choice, seen_BV, number_B), choice, keys_B2, number_B)
    seen_BV = with_token(seen_BV, token_B)
    return State(token_B, length_B + 1, length_B, keys_B2, seen_BV), cache


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
        hidden_B1E, cache = read(
            params, config, compute, state.token_B[:, None], state.length_B - 1, cache
        )
        logit_BV = logits(head_of(params, config), hidden_B1E[:, 0])
        number_B = state.length_B - state.prompt_B
        weight_BV = weights(logit_BV, choice, state.seen_BV, number_B)
        token_B = pick(weight_BV, choice, state.keys_B2, number_B)
        seen_BV = with_token(state.seen_BV, token_B)
        state = state._replace(token_B=token_B, length_B=state.length_B + 1, seen_BV=seen_BV)
        return (state, cache), token_B

    (state, cache), tokens_GB = jax.lax.scan(step, (state, cache), length=STRIDE)
    return tokens_GB.T, state, cache


def read(
    params: Params,
    config: ModelConfig,
    compute: Compute,
    tokens_BT: jax.Array,
    start_B: jax.Array,
    cache: Cache,
) -> tuple[jax.Array, Cache]:
    """Hidden states [B, T, E] of each row's next tokens, and the cache with them.

    start_B: the slot of the first of them; what the cache has from there on is not read. What does
    not fit the cache is left out of it.
    """
    B, T = tokens_BT.shape
    slots_1S = jnp.arange(cache[0].shape[2])[None]
    place_BT = start_B[:, None] + jnp.arange(T)
    causal_BTT = jnp.broadcast_to(jnp.tril(jnp.ones((T, T), bool)), (B, T, T))
    past = Past(*cache, slots_1S < start_B[:, None], jnp.broadcast_to(slots_1S, (B, slots_1S.size)))
    hidden_BTE, fresh = extend(params, config, compute, tokens_BT, place_BT, causal_BTT, past)
    rows_B1 = jnp.arange(B)[:, None]
    key, value = (
        old.at[:, rows_B1, place_BT].set(new, mode="drop")
        for old, new in zip(cache, fresh, strict=True)
    )
    return hidden_BTE, (key, value)
