"""Speculative decoding beside plain decoding: the same prompts, in turns.

Nobody ends a text early, so that every token of a batch is asked for. Times are of whole texts,
reading the prompts included.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from chopjax import interrupts
from chopjax.data.tokenizer import Tokenizer
from chopjax.score.drafting import Continuation, Draft, Drafting
from chopjax.score.engine import Engine
from chopjax.score.generation import Asked, generate

NEW_TOKENS = 128  # behind a prompt, at most


@dataclasses.dataclass(frozen=True)
class Drafted:
    """A draft at work, and the same texts without it.

    layers: of the draft. length: tokens that it writes in a round; 0: it was given up, since it
    costs as much as it brings. accepted_length: tokens that a round added to its text, the model's
    own among them. acceptance: the likelihood that a drafted token is taken where those before it
    were; None where texts ended before there was a round. tokens_per_second, plain: of all rows of
    a batch together, with the draft and without, the median over the batches.
    """

    layers: int
    length: int
    accepted_length: float
    acceptance: float | None
    tokens_per_second: float
    plain: float

    @property
    def speed_up(self) -> float:
        return self.tokens_per_second / self.plain


def beginnings(
    tokenizer: Tokenizer, texts: Iterable[str], count: int, length: int
) -> list[np.ndarray]:
    """The first tokens of the first documents, behind a BOS token where there is one."""
    begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    said = (begin + tokenizer.encode_batch([text])[0] for text in texts)
    whole = (ids for ids in said if len(ids) > len(begin))
    return [np.array(ids[:length], np.int32) for ids in itertools.islice(whole, count)]


def room(max_positions: int, length: int) -> tuple[int, int]:
    """(tokens of a prompt, new tokens) where prompts of `length` are wanted."""
    new = min(NEW_TOKENS, max_positions // 2)
    return min(length, max_positions - new), new


def measure_drafts(
    engine: Engine,
    drafts: Sequence[Draft],
    prompts: Sequence[np.ndarray],
    new: int,
    rows: int,
    length: int | None = None,
    advance: Callable[[], None] = lambda: None,
) -> list[Drafted]:
    """Each draft's figures, over `new` tokens behind every prompt.

    rows: prompts of a batch. length: tokens of a draft; None: what Drafting finds to be fastest. A
    first turn does not count: it compiles, and finds the length. advance: called after each turn.
    """
    asked, drafting = Asked(new), [Drafting(engine, draft, length) for draft in drafts]

    def plainly(batch: Sequence[np.ndarray]) -> list[Continuation]:
        return [Continuation(ids) for _, ids in generate(engine, batch, asked)]

    def with_draft(one: Drafting) -> Callable[[Sequence[np.ndarray]], list[Continuation]]:
        return lambda batch: [made for _, made in one.generate(batch, asked)]

    ways = [plainly, *map(with_draft, drafting)]
    speeds: list[list[float]] = [[] for _ in ways]
    texts: list[list[Continuation]] = [[] for _ in ways]
    batches = [prompts[at : at + rows] for at in range(0, len(prompts), rows)]
    for turn, batch in enumerate([batches[0], *batches]):
        for place, way in enumerate(ways):
            interrupts.check()
            start = _time(engine, drafts)
            made = way(batch)
            if turn:
                seconds = _time(engine, drafts) - start
                speeds[place].append(sum(len(text.ids) for text in made) / seconds)
                texts[place] += made
        advance()
    plain, *others = map(statistics.median, speeds)
    return [
        _drafted(one, draft, own, speed, plain)
        for one, draft, own, speed in zip(drafting, drafts, texts[1:], others, strict=True)
    ]


def _time(engine: Engine, drafts: Sequence[Draft]) -> float:
    """Seconds on a clock that stands still while a program is compiled."""
    engines = [engine, *(draft.engine for draft in drafts)]
    return time.perf_counter() - sum(each.statistics.compile_seconds for each in engines)


def _drafted(
    drafting: Drafting, draft: Draft, texts: Sequence[Continuation], speed: float, plain: float
) -> Drafted:
    pace = drafting.pace
    assert pace is not None
    rounds = sum(text.rounds for text in texts)
    behind = sum(
        len(text.ids) - 1 for text in texts
    )  # a text's first token is of its prompt's pass
    return Drafted(
        layers=draft.engine.config.num_layers,
        length=drafting.length,
        accepted_length=behind / max(rounds, 1),
        acceptance=pace.acceptance if pace.accepted + pace.refused else None,
        tokens_per_second=speed,
        plain=plain,
    )
