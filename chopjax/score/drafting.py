"""Generating with a draft: round by round, and how many tokens a draft should write.

Expected tokens of a round with K drafted ones are (1 - α^(K+1)) / (1 - α), where α is the share of
drafted tokens that the model takes (arXiv 2211.17192, section 3.1).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from chopjax import interrupts
from chopjax.errors import UserError
from chopjax.models.borrowed import Borrowed
from chopjax.models.config import ModelConfig
from chopjax.score.ending import Ends, never
from chopjax.score.engine import Engine
from chopjax.score.generation import Asked, GenerationShape, Rows, batches, begin, go_on
from chopjax.score.speculative import DraftShape, speculate, speculate_walking
from chopjax.score.steps import STRIDE, State
from chopjax.score.walk import of_engine, walks

FIRST_LENGTH = 4  # where the length is to be found
ROUNDS = 8  # after which it is
MOST = 16  # tokens that a draft writes


@dataclasses.dataclass(frozen=True)
class Draft:
    """engine: of the model that writes drafts. first: see `speculative.DraftShape`."""

    engine: Engine
    first: int = 0


def of_layers(engine: Engine, keep: Sequence[int]) -> Draft:
    """Some of a model's layers as its draft, taken out of its own weights as they are needed."""
    config = engine.config.keep(keep)
    rows_L = jnp.asarray(np.array(keep, np.int32))
    blocks = Borrowed(rows_L=rows_L, own={}, stack=engine.params["blocks"])
    made = _beside(engine, config, {**engine.params, "blocks": blocks})
    if walks(engine):
        made.walk = of_engine(engine).some(made, keep)
    return Draft(made, len(keep) if list(keep) == list(range(len(keep))) else 0)


def of_model(engine: Engine, other: Engine) -> Draft:
    """Another model as draft. Raises UserError as check_model."""
    check_model(engine.config, engine.max_length, other.config)
    return Draft(_beside(engine, other.config, other.params))


def check_model(config: ModelConfig, max_length: int, other: ModelConfig) -> None:
    """Raises UserError where a draft's vocabulary is not the model's, and where its context is
    shorter than max_length. other: the draft's."""
    for what, theirs, ours in (
        ("a vocabulary", other.vocab_size, config.vocab_size),
        ("a context", other.max_positions, max_length),
    ):
        if theirs < ours:
            raise UserError(
                f"--draft: it has {what} of {theirs}, the model one of {ours}; a draft needs as "
                "much"
            )
    if other.vocab_size > config.vocab_size:
        raise UserError(
            f"--draft: its vocabulary has {other.vocab_size} tokens, and the model's "
            f"{config.vocab_size}: it could write what the model does not know"
        )


def _beside(engine: Engine, config: ModelConfig, params: Any) -> Engine:
    return Engine(config, params, engine.compute, engine.max_length, engine.mesh, engine.budget)


@dataclasses.dataclass
class Continuation:
    """New ids of a prompt. rounds: passes of the model that they took after the prompt's. drafted:
    tokens that the draft wrote; accepted: those of them that are among the ids."""

    ids: list[int]
    rounds: int = 0
    drafted: int = 0
    accepted: int = 0


@dataclasses.dataclass
class Pace:
    """What is measured on the way. Seconds are of a batch, whatever its rows.

    plain, draft: a token of the model's and of the draft's. round: a round with `length` drafted
    tokens, in batches of the shape that the first two were measured in; 0 before there was one.
    rounds: of that length, of all rows; tokens: what texts have of them. accepted: drafted tokens
    in texts, of all lengths; refused: how many rounds ended with a refusal. measuring: what it took
    to measure the first two.
    """

    plain: float
    draft: float
    length: int
    shape: GenerationShape | None = None
    measuring: float = 0.0
    round: float = 0.0
    rounds: int = 0
    tokens: int = 0
    accepted: int = 0
    refused: int = 0

    @property
    def acceptance(self) -> float:
        """α: the likelihood that a token is taken where the ones before it were."""
        return self.accepted / max(self.accepted + self.refused, 1)

    @property
    def cost(self) -> float:
        """c: a token of the draft's in tokens of the model's."""
        return self.draft / self.plain

    @property
    def tokens_a_round(self) -> float:
        return self.tokens / max(self.rounds, 1)

    @property
    def gain(self) -> float:
        """How many times as fast as plain decoding the rounds were."""
        return self.tokens_a_round * self.plain / self.round if self.round else 1.0

    def count(self, taken: int, kept: int) -> int:
        """A row's round: tokens that the model took, the last of them its own, and how many of them
        its text has, which may have ended before. Returns how many of these were drafted."""
        accepted = min(taken - 1, kept)
        self.rounds += 1
        self.tokens += kept
        self.accepted += accepted
        self.refused += kept == taken <= self.length
        return accepted

    def seconds_a_token(self, length: int) -> float:
        """Expected, with so many drafted tokens a round; 0: plain decoding."""
        if not length:
            return self.plain
        alpha = min(self.acceptance, 1 - 1e-6)
        reading = max(self.round - self.length * self.draft, self.plain)
        tokens = (1 - alpha ** (length + 1)) / (1 - alpha)
        return (reading + length * self.draft) / tokens

    def best_length(self) -> int:
        return min(range(MOST + 1), key=self.seconds_a_token)


class Drafting:
    """length: tokens of a draft, from 1; None: what is best by what the first rounds measure, which
    may be none."""

    def __init__(self, engine: Engine, draft: Draft, length: int | None):
        self._engine, self._draft = engine, draft
        self.length, self._fixed = length or FIRST_LENGTH, length is not None
        self.pace: Pace | None = None

    @property
    def compile_seconds(self) -> float:
        return (
            self._engine.statistics.compile_seconds + self._draft.engine.statistics.compile_seconds
        )

    def generate(
        self, prompts: Sequence[np.ndarray], asked: Asked, ends: Ends = never
    ) -> Iterator[tuple[int, Continuation]]:
        """As `generation.generate`, with the same text where nothing is drawn."""
        self._engine.check_ids(prompts)
        for batch, shape in batches(self._engine, [len(p) for p in prompts], asked.most):
            given = [prompts[index] for index in batch]
            yield from zip(batch, self._batch(given, batch, shape, asked, ends), strict=True)

    def _batch(
        self,
        prompts: list[np.ndarray],
        numbers: list[int],
        shape: GenerationShape,
        asked: Asked,
        ends: Ends,
    ) -> list[Continuation]:
        engine, draft = self._engine, self._draft
        state, cache = begin(engine, prompts, numbers, shape, asked)
        before = np.ones(shape.rows, np.int32)
        before[: len(prompts)] = [prompt[-1] for prompt in prompts]
        # As a round gives it, whole everywhere: a program is compiled for where its arrays lie.
        before_B = jax.device_put(before, state.token_B.sharding)
        draft_cache = None
        if not draft.first:
            _, draft_cache = begin(draft.engine, prompts, numbers, shape, asked)
        if self.pace is None:
            held = draft_cache or _first(cache, draft.first)
            began = time.perf_counter() - self.compile_seconds
            plain = seconds_a_step(engine, state, cache, shape, asked)
            drafted = seconds_a_step(draft.engine, state, held, shape, asked)
            measuring = time.perf_counter() - self.compile_seconds - began
            self.pace = Pace(plain, drafted, self.length, shape, measuring)
        rows = Rows(numbers, asked, ends)
        rows.add([[token] for token in np.asarray(state.token_B).tolist()])
        made = [Continuation(ids) for ids in rows.ids]
        rounds: list[float] = []
        while rows.open():
            interrupts.check()
            if not self._fixed and len(rounds) == ROUNDS:
                self.length, self._fixed = self.pace.best_length(), True
                if self.length not in (0, self.pace.length):  # what was measured is of another
                    self.pace.length, self.pace.round = self.length, 0.0
                    self.pace.rounds = self.pace.tokens = 0
                    rounds.clear()
            if not self.length:
                new_BG, state, cache = go_on(engine, state, cache, shape, asked.choice)
                for one, kept in zip(made, rows.add(np.asarray(new_BG).tolist()), strict=True):
                    one.rounds += kept
                continue
            start = time.perf_counter()
            compiled = self.compile_seconds
            new_BT, taken_B, state, before_B, cache, draft_cache = self._round(
                state, before_B, cache, draft_cache, shape, asked
            )
            new, taken = np.asarray(new_BT)[: len(made)], np.asarray(taken_B)[: len(made)].tolist()
            seconds = time.perf_counter() - start
            seconds -= self.compile_seconds - compiled
            rounds.append(seconds)
            if shape == self.pace.shape:
                self.pace.round = float(np.median(rounds[-ROUNDS:]))
            written = [row[:count].tolist() for row, count in zip(new, taken, strict=True)]
            for one, count, kept in zip(made, taken, rows.add(written), strict=True):
                if kept:  # the row was open
                    one.rounds, one.drafted = one.rounds + 1, one.drafted + self.length
                    one.accepted += self.pace.count(count, kept)
        return made

    def _round(
        self,
        state: State,
        before_B: jax.Array,
        cache: Any,
        draft_cache: Any,
        shape: GenerationShape,
        asked: Asked,
    ) -> Any:
        engine, draft = self._engine, self._draft
        form = DraftShape(draft.engine.config, draft.first, self.length)
        given = state, before_B, cache, draft_cache
        if walks(engine):
            walk, draft_walk = of_engine(engine), of_engine(draft.engine)
            return speculate_walking(walk, draft_walk, given, asked.choice, form)
        static = {
            "config": engine.config,
            "compute": engine.compute,
            "choice": asked.choice,
            "draft": form,
        }
        return engine.program(
            speculate,
            (shape, asked.choice, form),
            (engine.params, draft.engine.params, *given),
            static,
            donate=("cache", "draft_cache"),
        )


def seconds_a_step(
    engine: Engine, state: State, cache: Any, shape: GenerationShape, asked: Asked
) -> float:
    """Of plain decoding, measured on copies: the best of three runs of STRIDE tokens."""
    seconds = []
    for turn in range(4):
        copied = jax.tree.map(jnp.copy, cache)
        jax.block_until_ready(copied)
        start = time.perf_counter()
        jax.block_until_ready(go_on(engine, state, copied, shape, asked.choice))
        if turn:
            seconds.append(time.perf_counter() - start)
    return min(seconds) / STRIDE


def _first(cache: Any, layers: int) -> Any:
    """The part of a cache that belongs to a model's first layers."""
    if isinstance(cache, list):
        return cache[:layers]
    return cache[0][:layers], cache[1][:layers]
