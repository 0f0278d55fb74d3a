"""The engine of `chopjax run` and `chopjax sweep`: stages that are done once, go on after a kill,
and are done again when what they depend on changed.

A stage is known by its fingerprints: hashes of all that its result depends on, as they are taken
now and as an earlier chopjax took them (inputs.py). What is done is written down in records, which
have a form of their own for each verb (records.py).
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from chopjax import interrupts
from chopjax.disk.mark import changed, is_taken, some
from chopjax.errors import UserError, listing
from chopjax.progress import say
from chopjax.runs.inputs import digest


def _nothing() -> None:
    pass


@dataclasses.dataclass(frozen=True)
class Stage:
    """One piece of work.

    settings: all that the result depends on apart from the stages in `needs`; must survive JSON.
    run: does the work and returns a JSON object. Called again after a kill with the same settings,
        it goes on where it stopped if it can.
    check: raises UserError where the stage cannot be done again, since others' files would go.
    clean: removes what an attempt with other settings left behind, or sets it aside.
    outputs: files or folders without which the stage is not done, whatever its record says.
    lacks: what those hold too little of for what they are needed for now; empty where nothing.
    places: what else it writes. Before it has run for the first time, nothing is there.
    """

    name: str
    settings: dict[str, Any]
    needs: tuple[str, ...]
    run: Callable[[], dict[str, Any]]
    check: Callable[[], None] = _nothing
    clean: Callable[[], None] = _nothing
    outputs: tuple[Path, ...] = ()
    lacks: Callable[[], str] = str  # str() is empty
    places: tuple[Path, ...] = ()


@dataclasses.dataclass(frozen=True)
class Record:
    """What is known of a stage. result: None while it has only begun."""

    fingerprint: str
    settings: dict[str, Any]
    result: dict[str, Any] | None = None
    seconds: float = 0.0


class Records(Protocol):
    """Where stages are written down."""

    def find(self, stage: Stage, fingerprints: Sequence[str]) -> Record | None:
        """Raises UserError where it cannot be read."""

    def write(self, stage: Stage, record: Record) -> None: ...


@dataclasses.dataclass(frozen=True)
class Task:
    """A stage as it stands: done with its record, or to be run for a reason."""

    stage: Stage
    begun: Record
    record: Record | None
    reason: str  # for people; empty for the first time
    redo: bool  # what is there is of no use

    @property
    def done(self) -> Record | None:
        """The record where there is nothing to do."""
        return None if self.redo or not self.record or self.record.result is None else self.record


def fingerprints_of(*ways: Sequence[Stage]) -> list[tuple[str, ...]]:
    """Of each stage, those of its settings in `ways`: lists of the same stages, each with settings
    taken in another way. A fingerprint covers those of the stages that the stage builds on."""
    return list(zip(*map(_fingerprints, ways), strict=True))


def _fingerprints(stages: Sequence[Stage]) -> list[str]:
    digests: dict[str, str] = {}
    for stage in stages:
        digests[stage.name] = digest(
            [stage.name, stage.settings, [digests[n] for n in stage.needs]]
        )
    return list(digests.values())


def look(
    records: Records, stages: Sequence[Stage], fingerprints: Sequence[Sequence[str]]
) -> list[Task]:
    """What is done and what is to do. Changes nothing.

    Raises UserError where a stage's record cannot be read, where something stands in the place of
    a stage that did not make it, and where what is to be read now was damaged.
    """
    tasks = [_task(records, *pair) for pair in zip(stages, fingerprints, strict=True)]
    _check_places(tasks)
    for task in tasks:
        if task.redo:
            task.stage.check()
    _check_inputs(tasks)
    return tasks


def finish(records: Records, task: Task) -> dict[str, Any]:
    """The result of a stage, which is run where it is not done."""
    stage, begun, done = task.stage, task.begun, task.done
    if done and done.result is not None:
        now = dataclasses.replace(begun, result=done.result, seconds=done.seconds)
        if now != done:
            records.write(stage, now)  # as it is recorded now
        return done.result
    if task.redo:
        stage.clean()
    records.write(stage, begun)
    start = time.monotonic()
    result = stage.run()
    seconds = time.monotonic() - start
    records.write(stage, dataclasses.replace(begun, result=result, seconds=seconds))
    return result


def run_all(records: Records, tasks: Sequence[Task]) -> dict[str, dict[str, Any]]:
    """Finish every stage, in order, with a line for each; stage name → result."""
    results = {}
    for number, task in enumerate(tasks, 1):
        interrupts.check()
        title = f"[{number}/{len(tasks)}] {task.stage.name}"
        if task.done:
            say(f"{title}: done before, {task.done.seconds:.0f} s then")
        else:
            say(f"{title}: {task.reason}" if task.reason else title)
        results[task.stage.name] = finish(records, task)
    return results


def _task(records: Records, stage: Stage, fingerprints: Sequence[str]) -> Task:
    settings = json.loads(json.dumps(stage.settings))
    begun, record = Record(fingerprints[0], settings), records.find(stage, fingerprints)
    if record is None:
        return Task(stage, begun, None, "", redo=False)
    if record.fingerprint not in fingerprints:
        reason = f"again, because {_difference(record.settings, settings)}"
        return Task(stage, begun, record, reason, redo=True)
    if record.result is None:
        return Task(stage, begun, record, "going on where it stopped", redo=False)
    if lost := [path for path in stage.outputs if not path.exists()]:
        return Task(stage, begun, record, f"again, because {lost[0]} is gone", redo=True)
    if lacking := stage.lacks():
        return Task(stage, begun, record, f"again, because it has too few {lacking}", redo=True)
    return Task(stage, begun, record, "", redo=False)


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Which settings changed, for people."""
    differing = [key for key in old.keys() | new.keys() if old.get(key) != new.get(key)]
    if not differing:
        return "an earlier stage changed"
    parts = []
    for key in sorted(differing):
        if key in old and key in new:
            parts.append(f"{key} was {old[key]!r}, is {new[key]!r}")
        else:
            parts.append(f"{key} is {'new' if key in new else 'no longer asked for'}")
    return "; ".join(part if len(part) < 200 else part[:200] + "…" for part in parts)


def _check_places(tasks: Sequence[Task]) -> None:
    """Raise UserError where a stage would write over what it did not make."""
    places = [(task, path) for task in tasks for path in (*task.stage.outputs, *task.stage.places)]
    taken = [str(path) for task, path in places if task.record is None and is_taken(path)]
    taken += [
        str(parent)
        for _, path in places
        for parent in (path.parent, path.parent.parent)
        if os.path.lexists(parent) and not parent.is_dir()
    ]
    if taken:
        raise UserError(
            "these stand where a stage of this run writes, and no stage made them:\n"
            f"{listing(list(dict.fromkeys(taken)))}\n"
            "Move these away, or give another --workdir; nothing was changed"
        )


def _check_inputs(tasks: Sequence[Task]) -> None:
    """Raise UserError where a stage that is to run would read what was damaged meanwhile."""
    by_name = {task.stage.name: task for task in tasks}
    read = {name for task in tasks if not task.done for name in task.stage.needs}
    damaged = [
        f"{output}: {some(names)}"
        for name in sorted(read)
        if by_name[name].done
        for output in by_name[name].stage.outputs
        if (names := changed(output))
    ]
    if damaged:
        raise UserError(
            "files that earlier stages made have changed since, and a later stage needs them:\n"
            f"{listing(damaged)}\nPut the files back, or delete the folder to have it made again"
        )
