"""Prompts in, replies out, in the prompts' order."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import numpy as np

from chopjax.disk.atomic import new_file
from chopjax.generate.prompts import Prompt
from chopjax.generate.voice import Voice
from chopjax.progress import progress
from chopjax.score.drafting import Continuation, Drafting
from chopjax.score.engine import Engine
from chopjax.score.generation import Asked, generate
from chopjax.score.journal import Journal, prompt_key

Hear = Callable[[int, list[int]], None]  # a prompt's number, and its new ids so far


@dataclasses.dataclass(frozen=True)
class Reply:
    """text: before the first stop string. tokens: its ids, with those that ended it. seconds: since
    its batch began, without compiling and measuring; of answers of an earlier run, theirs. rounds,
    drafted, accepted: see `drafting.Continuation`; without a draft all are 0."""

    text: str
    tokens: list[int]
    rounds: int
    drafted: int
    accepted: int
    seconds: float


@dataclasses.dataclass
class Clock:
    """seconds: of generating, without compiling and measuring. tokens, prompts: done in them, what
    is known from an earlier run left out."""

    seconds: float = 0.0
    tokens: int = 0
    prompts: int = 0

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


def replies(
    engine: Engine,
    ids: Sequence[np.ndarray],
    asked: Asked,
    voice: Voice,
    clock: Clock,
    drafting: Drafting | None = None,
    journal: Journal | None = None,
    hear: Hear = lambda number, new: None,
) -> Generator[tuple[int, Reply]]:
    """(prompt's number, reply), in order. journal: remembers replies through a kill. Raises
    UserError for an id that the model does not know."""
    keys = [prompt_key(one, _said(asked, number, voice)) for number, one in enumerate(ids)]
    waiting = {n: Reply(**known) for n, known in (journal.lookup(keys) if journal else {}).items()}
    due = 0
    todo = [number for number in range(len(ids)) if number not in waiting]
    with progress("generate", len(ids), "prompts", len(waiting)) as bar:
        for number, reply in _fresh(engine, ids, todo, asked, voice, clock, drafting, hear):
            if journal:
                journal.add(keys[number], dataclasses.asdict(reply))
            bar.advance(1, **{"tok/s": clock.tokens_per_second})
            waiting[number] = reply
            while due in waiting:
                yield due, waiting.pop(due)
                due += 1
    while due in waiting:
        yield due, waiting.pop(due)
        due += 1


def _said(asked: Asked, number: int, voice: Voice) -> dict[str, object]:
    """What a reply depends on besides model and prompt; of its number where something is drawn."""
    drawn = asked.choice.sampling.temperature > 0
    return {
        "most": asked.most,
        "eos": sorted(asked.eos_ids),
        "choice": dataclasses.asdict(asked.choice),
        "stops": list(voice.stops),
        "draw": [asked.seed, number] if drawn else None,
    }


def _fresh(
    engine: Engine,
    ids: Sequence[np.ndarray],
    todo: Sequence[int],
    asked: Asked,
    voice: Voice,
    clock: Clock,
    drafting: Drafting | None,
    hear: Hear,
) -> Iterator[tuple[int, Reply]]:
    """As batches are done."""
    heard: dict[int, float] = {}
    began = done = _time(engine, drafting)

    def ends(place: int, new: list[int]) -> int | None:
        heard[place] = _time(engine, drafting)
        hear(todo[place], new)
        return voice.ends(new)

    prompts = [ids[number] for number in todo]
    numbered = dataclasses.replace(asked, numbers=tuple(todo))
    made: Iterator[tuple[int, Continuation]]
    if drafting is None:
        plain = generate(engine, prompts, numbered, ends)
        made = ((place, Continuation(new)) for place, new in plain)
    else:
        made = drafting.generate(prompts, numbered, ends)
    for place, one in made:
        if heard[place] > done:  # the first of its batch
            began, done = done, _time(engine, drafting)
            clock.seconds += done - began
        tokens, text = voice.cut(one.ids)
        clock.tokens += len(tokens)
        clock.prompts += 1
        seconds = heard[place] - began
        yield todo[place], Reply(text, tokens, one.rounds, one.drafted, one.accepted, seconds)


def _time(engine: Engine, drafting: Drafting | None) -> float:
    """Seconds on a clock that stands still while something else is done than text."""
    idle = engine.statistics.compile_seconds
    if drafting is not None:
        measuring = 0.0 if drafting.pace is None else drafting.pace.measuring
        idle = drafting.compile_seconds + measuring
    return time.perf_counter() - idle


def journal_folder(output: Path) -> Path:
    """Where replies are kept until `output` is written."""
    return output.with_name(f".{output.name}.replies")


def corpus_row(
    prompt: Prompt, ids: np.ndarray, reply: Reply, voice: Voice, chat: bool = False
) -> dict[str, object]:
    """A line for `chopjax prepare`. chat: whether texts are what a user says."""
    if prompt.kind == "messages" or (chat and prompt.kind == "prompt"):
        return prompt.with_answer(reply.text)
    before, whole = voice.text(ids.tolist()), voice.text([*ids.tolist(), *reply.tokens])
    beyond = len(voice.text(reply.tokens)) - len(reply.text)  # from the stop string on
    whole = whole[: len(whole) - beyond]
    if prompt.kind == "tokens":
        return {"text": whole}
    # SentencePiece's decoders drop the space that a reply alone begins with.
    begins = whole.startswith(before)
    return {"text": prompt.said + (whole[len(before) :] if begins else reply.text)}


def write_corpus(
    output: Path, rows: Sequence[dict[str, object]], journal: Journal, overwrite: bool
) -> None:
    """All lines at once; the replies that were kept until then go."""
    with new_file(output, overwrite) as path:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.write_text("".join(lines), encoding="utf-8")
    journal.remove()
    with contextlib.suppress(OSError):  # a run with another setting has its replies there
        journal.path.parent.rmdir()
