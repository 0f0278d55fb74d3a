"""Stages that run once: skipped when done with the same settings, redone when they changed.

A stage's record is WORKDIR/stages/NAME.json. It is written before the stage begins (so that a
killed stage resumes with what it had) and again when it has ended. A stage's fingerprint covers its
own settings and the fingerprints of the stages it builds on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from chopjax.checkpoint.atomic import new_file
from chopjax.errors import UserError
from chopjax.progress import say


@dataclasses.dataclass(frozen=True)
class Stage:
    """One step of a pipeline.

    settings: all that the result depends on apart from the stages in `needs`; must survive JSON.
    run: does the work and returns a JSON object. Called again after a kill with the same settings,
        it goes on where it stopped if it can.
    clean: removes what an attempt with other settings left behind.
    outputs: files or folders without which the stage is not done, whatever its record says.
    """

    name: str
    settings: dict[str, Any]
    needs: tuple[str, ...]
    run: Callable[[], dict[str, Any]]
    clean: Callable[[], None]
    outputs: tuple[Path, ...] = ()


def run_stages(workdir: Path, stages: Sequence[Stage]) -> dict[str, dict[str, Any]]:
    """Run what is not done yet, in order; stage name → result.

    Raises UserError where a stage's record cannot be read.
    """
    folder = workdir / "stages"
    folder.mkdir(parents=True, exist_ok=True)
    fingerprints: dict[str, str] = {}
    results: dict[str, dict[str, Any]] = {}
    for number, stage in enumerate(stages, 1):
        fingerprint = _fingerprint(stage, fingerprints)
        fingerprints[stage.name] = fingerprint
        path = folder / f"{stage.name}.json"
        record = _read(path)
        title = f"[{number}/{len(stages)}] {stage.name}"
        same = record is not None and record["fingerprint"] == fingerprint
        lost = [path for path in stage.outputs if not path.exists()]
        if record is not None and same and "result" in record and not lost:
            say(f"{title}: done before, {record['seconds']:.0f} s then")
            results[stage.name] = record["result"]
            continue
        if record is not None and same and "result" in record:
            say(f"{title}: again, because {lost[0]} is gone")
            stage.clean()
        elif record is not None and same:
            say(f"{title}: going on where it stopped")
        elif record is not None:
            say(f"{title}: again, because {_difference(record['settings'], stage.settings)}")
            stage.clean()
        else:
            say(title)
            stage.clean()
        begun = {"fingerprint": fingerprint, "settings": stage.settings}
        _write(path, begun)
        start = time.monotonic()
        result = stage.run()
        seconds = time.monotonic() - start
        _write(path, begun | {"seconds": seconds, "result": result})
        results[stage.name] = result
    return results


def _fingerprint(stage: Stage, fingerprints: dict[str, str]) -> str:
    content = [stage.name, stage.settings, [fingerprints[name] for name in stage.needs]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Which settings changed, for people."""
    new = json.loads(json.dumps(new))
    changed = [key for key in old.keys() | new.keys() if old.get(key) != new.get(key)]
    if not changed:
        return "an earlier stage changed"
    parts = []
    for key in sorted(changed):
        if key in old and key in new:
            parts.append(f"{key} was {old[key]!r}, is {new[key]!r}")
        else:
            parts.append(f"{key} is {'new' if key in new else 'no longer asked for'}")
    return "; ".join(part if len(part) < 200 else part[:200] + "…" for part in parts)


def _read(path: Path) -> dict[str, Any] | None:
    """A stage's record; None where there is none. Absent is not unreadable."""
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text())
        record["fingerprint"], record["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: the stage's record is damaged ({error}). Delete it to run the stage again."
        ) from error
    return record


def _write(path: Path, record: dict[str, Any]) -> None:
    with new_file(path, overwrite=True) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
