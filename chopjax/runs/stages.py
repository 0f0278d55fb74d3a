"""Stages that run once: skipped when done with the same settings, redone when they changed.

A stage's record is WORKDIR/stages/NAME.json, with a copy in WORKDIR/stages/copies. It is written
before the stage begins (so that a killed stage resumes with what it had) and again when it has
ended. A stage's fingerprint covers its own settings and the fingerprints of the stages it builds
on.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from chopjax import interrupts
from chopjax.disk.atomic import new_file
from chopjax.disk.mark import changed, is_taken, some
from chopjax.errors import UserError, listing
from chopjax.progress import say
from chopjax.runs.inputs import digest

FOLDER = "stages"
COPIES = "copies"


def _nothing() -> None:
    pass


@dataclasses.dataclass(frozen=True)
class Stage:
    """One step of a pipeline.

    settings: all that the result depends on apart from the stages in `needs`; must survive JSON.
    run: does the work and returns a JSON object. Called again after a kill with the same settings,
        it goes on where it stopped if it can.
    check: raises UserError where the stage cannot be done again, since others' files would go.
    clean: removes what an attempt with other settings left behind, or sets it aside.
    outputs: files or folders without which the stage is not done, whatever its record says.
    places: what else it writes. Before it has run for the first time, nothing is there.
    """

    name: str
    settings: dict[str, Any]
    needs: tuple[str, ...]
    run: Callable[[], dict[str, Any]]
    check: Callable[[], None] = _nothing
    clean: Callable[[], None] = _nothing
    outputs: tuple[Path, ...] = ()
    places: tuple[Path, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Task:
    """A stage as it stands: done with its record, or to be run for a reason."""

    stage: Stage
    begun: dict[str, Any]  # fingerprint and settings
    record: dict[str, Any] | None
    reason: str  # for people; empty for the first time
    redo: bool  # what is there is of no use

    @property
    def done(self) -> bool:
        return self.record is not None and "result" in self.record and not self.redo


def run_stages(
    workdir: Path, stages: Sequence[Stage], older: Sequence[Stage] = ()
) -> dict[str, dict[str, Any]]:
    """Run what is not done yet, in order; stage name → result.

    older: the same stages with the settings that an earlier chopjax would have recorded.
    Raises UserError before any work is done where a stage's record cannot be read, and where
    something stands in the place of a stage that did not make it.
    """
    folder = workdir / FOLDER
    tasks = _look(folder, stages, older)
    (folder / COPIES).mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, Any]] = {}
    for number, task in enumerate(tasks, 1):
        interrupts.check()
        stage, begun, record = task.stage, task.begun, task.record
        title = f"[{number}/{len(stages)}] {stage.name}"
        if record is not None and task.done:
            say(f"{title}: done before, {record['seconds']:.0f} s then")
            if record | begun != record:
                _write(folder, stage.name, record | begun)  # as it is recorded now
            results[stage.name] = record["result"]
            continue
        say(f"{title}: {task.reason}" if task.reason else title)
        if task.redo:
            stage.clean()
        _write(folder, stage.name, begun)
        start = time.monotonic()
        result = stage.run()
        seconds = time.monotonic() - start
        _write(folder, stage.name, begun | {"seconds": seconds, "result": result})
        results[stage.name] = result
    return results


def _look(folder: Path, stages: Sequence[Stage], older: Sequence[Stage]) -> list[_Task]:
    """What is done and what is to do. Changes nothing."""
    for place in (folder, folder / COPIES):
        if os.path.lexists(place) and not place.is_dir():
            raise UserError(f"{place} is not a folder; move it away")
    now, before = _fingerprints(stages), _fingerprints(older)
    tasks = [_task(folder, stage, now, before) for stage in stages]
    taken = [
        str(path)
        for task in tasks
        if task.record is None
        for path in (*task.stage.outputs, *task.stage.places)
        if is_taken(path)
    ]
    taken += [
        str(parent)
        for task in tasks
        for path in (*task.stage.outputs, *task.stage.places)
        for parent in (path.parent, path.parent.parent)
        if parent.is_relative_to(folder.parent) and os.path.lexists(parent)
        if not parent.is_dir()
    ]
    if taken:
        raise UserError(
            f"no stage of this run is known to have made what stands in its place:\n"
            f"{listing(list(dict.fromkeys(taken)))}\n"
            "Move that away, or give another --workdir; nothing was changed"
        )
    for task in tasks:
        if task.redo:
            task.stage.check()
    _check_inputs(tasks)
    return tasks


def _check_inputs(tasks: Sequence[_Task]) -> None:
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
            f"what earlier stages made has changed since, and is to be read now:\n"
            f"{listing(damaged)}\nPut the files back, or delete the folder to have it made again"
        )


def _task(folder: Path, stage: Stage, now: dict[str, str], before: dict[str, str]) -> _Task:
    record = _read(folder, stage.name)
    settings = json.loads(json.dumps(stage.settings))
    begun = {"fingerprint": now[stage.name], "settings": settings}
    if record is None:
        return _Task(stage, begun, None, "", redo=False)
    lost = [path for path in stage.outputs if not path.exists()]
    if record["fingerprint"] not in (now[stage.name], before.get(stage.name)):
        reason = f"again, because {_difference(record['settings'], settings)}"
        return _Task(stage, begun, record, reason, redo=True)
    if "result" not in record:
        return _Task(stage, begun, record, "going on where it stopped", redo=False)
    if lost:
        return _Task(stage, begun, record, f"again, because {lost[0]} is gone", redo=True)
    return _Task(stage, begun, record, "", redo=False)


def _fingerprints(stages: Sequence[Stage]) -> dict[str, str]:
    found: dict[str, str] = {}
    for stage in stages:
        found[stage.name] = digest([stage.name, stage.settings, [found[n] for n in stage.needs]])
    return found


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


def _read(folder: Path, name: str) -> dict[str, Any] | None:
    """A stage's record, or its copy; None where there is neither. Absent is not unreadable."""
    path, copy = folder / f"{name}.json", folder / COPIES / f"{name}.json"
    try:
        copied = _parse(copy)
    except ValueError as error:
        raise UserError(
            f"{copy}: the copy of the stage's record is damaged ({error}). Delete it: nothing is "
            f"lost as long as {path} is there"
        ) from None
    try:
        return _parse(path) or copied
    except ValueError as error:
        advice = (
            "Delete it: its copy takes its place, and nothing is done again"
            if copied
            else "It has no copy. Move it away, and what the stage made, to run the stage again"
        )
        raise UserError(f"{path}: the stage's record is damaged ({error}). {advice}") from None


def _parse(path: Path) -> dict[str, Any] | None:
    """None where there is no file. Raises ValueError for all but a record as it was written."""
    if not os.path.lexists(path):
        return None
    if path.is_symlink():
        raise ValueError("it is a link")
    try:
        record: dict[str, Any] = json.loads(path.read_bytes())
        if "digest" in record and record.pop("digest") != digest(record):
            raise ValueError("it is not as it was written")
        sound = isinstance(record["fingerprint"], str) and isinstance(record["settings"], dict)
        if "result" in record:
            sound = sound and isinstance(record["result"], dict) and record["seconds"] >= 0
    except (OSError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(str(error) or type(error).__name__) from error
    if not sound:
        raise ValueError("not what a stage writes")
    return record


def _write(folder: Path, name: str, record: dict[str, Any]) -> None:
    record = json.loads(json.dumps(record))  # as it will be read
    record["digest"] = digest(record)
    for path in (folder / COPIES / f"{name}.json", folder / f"{name}.json"):
        with new_file(path, overwrite=True) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n")
