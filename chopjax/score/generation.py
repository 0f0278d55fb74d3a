"""Text behind many prompts: which go together in a batch, and when each of them ends.

Axes: B rows, S slots.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from lm_eval.models.utils import normalize_gen_kwargs

from chopjax import interrupts
from chopjax.errors import UserError
from chopjax.launch import leader
from chopjax.score.decoding import GENERATION_CONFIG, REFUSED, Rules, read_rules, refused
from chopjax.score.ending import Ends, never
from chopjax.score.engine import Engine
from chopjax.score.next_token import LIKELIEST, NO_RULES, Choice
from chopjax.score.steps import State, decode, prefill
from chopjax.score.walk import of_engine, walks

SHORTEST = 32  # slots that a prompt is given at least


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


def generate(
    engine: Engine, prompts: Sequence[np.ndarray], asked: Asked, ends: Ends = never
) -> Iterator[tuple[int, list[int]]]:
    """(prompt's index, its continuation) as batches are done, longest prompts first.

    A continuation has `most` tokens, or fewer: it stops with a token of eos_ids, and where `ends`
    says. Prompts have at least one token, and with `most` more they fit the context length. Raises
    UserError for an id without a row in the embedding table.
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
    rows.add([[token] for token in np.asarray(state.token_B).tolist()])
    while leader.from_first(rows.open()):
        interrupts.check()
        new_BG, state, cache = go_on(engine, state, cache, shape, asked.choice)
        rows.add(np.asarray(new_BG).tolist())
    return rows.ids


def go_on(
    engine: Engine, state: State, cache: Any, shape: GenerationShape, choice: Choice
) -> tuple[jax.Array, State, Any]:
    """The next STRIDE tokens of every row [B, STRIDE]. The cache is used up."""
    if walks(engine):
        return of_engine(engine).decode(state, cache, choice)
    static = {"config": engine.config, "compute": engine.compute, "choice": choice}
    given = (engine.params, state, cache)
    found: tuple[jax.Array, State, Any]
    found = engine.program(decode, (shape, choice), given, static, donate="cache")
    return found


class Rows:
    """The new ids of a batch's prompts, and which of them go on."""

    def __init__(self, numbers: Sequence[int], asked: Asked, ends: Ends):
        self.ids: list[list[int]] = [[] for _ in numbers]
        self._numbers, self._asked, self._ends = numbers, asked, ends
        self._open = set(range(len(numbers)))

    def open(self) -> bool:
        return bool(self._open)

    def add(self, new: Sequence[Sequence[int]]) -> list[int]:
        """new: by row what it wrote. Returns how many tokens of it each row has taken: those behind
        its end are left out."""
        taken = [0] * len(self.ids)
        for row in sorted(self._open):
            ids = self.ids[row]
            before = len(ids)
            for token in new[row]:
                ids.append(token)
                if token in self._asked.eos_ids or len(ids) == self._asked.most:
                    self._open.discard(row)
                    break
            if (end := self._ends(self._numbers[row], ids)) is not None:
                del ids[end:]
                self._open.discard(row)
            taken[row] = len(ids) - before
        return taken


def begin(
    engine: Engine,
    prompts: Sequence[np.ndarray],
    numbers: Sequence[int],
    shape: GenerationShape,
    asked: Asked,
) -> tuple[State, Any]:
    """Read the prompts: each row's state, and the cache. Rows without a prompt have a single token,
    and nobody looks at them."""
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
    if walks(engine):
        walk = of_engine(engine)
        return walk.prefill(tokens_BS, length_B, keys_B2, shape.slots, asked.choice)
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
