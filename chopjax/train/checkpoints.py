"""Checkpoints of a run: whole and verified under their name, or not there.

    CHECKPOINTS/STEP/               Orbax: params, optimizer, step (and the spike guard)
    CHECKPOINTS/STEP/run.json       of which run: settings, kept layers, tokenizer, data
    CHECKPOINTS/STEP/sha256.json    size and digest of every file; written last
    CHECKPOINTS/STEP.partial        a save that is going on, or one that was killed
    CHECKPOINTS/STEP.damaged        found damaged on a resume, and left aside

A save runs in the background: Orbax copies the arrays to the host before `save` returns and
writes them after; then the files are hashed, flushed to disk and renamed from STEP.partial to
STEP. So what a kill leaves is never taken for a checkpoint, and of what bears a number every byte
is accounted for.
"""

from __future__ import annotations

import concurrent.futures
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from chopjax.checkpoint.atomic import flush, flush_tree
from chopjax.checkpoint.manifest import verify_files, write_manifest
from chopjax.checkpoint.orbax_folder import PYTREE
from chopjax.errors import UserError, listing
from chopjax.progress import say

RECORD = "run.json"

# Orbax writes a traceback of what fails in its threads, and raises it again where we wait for it.
logging.getLogger("absl").addFilter(lambda entry: "_SignalingThread.run()" not in str(entry.msg))


def steps(folder: Path) -> list[int]:
    """Steps with a checkpoint, ascending. A name that is a number means that it was completed."""
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit() and p.is_dir())


def newest(folder: Path) -> str:
    """For people: what a run would go on from."""
    found = steps(folder)
    if not found:
        return f"There is no checkpoint in {folder} yet: the run would begin again at step 0."
    return f"Nothing saved is lost; the newest checkpoint is that of step {found[-1]} in {folder}."


def read_record(folder: Path, step: int) -> dict[str, Any]:
    """run.json of a verified checkpoint."""
    return json.loads((folder / str(step) / RECORD).read_text())


# ------------------------------------------------------------------------------------- saving


class Saver:
    """Saves one checkpoint at a time in the background and removes those no longer wanted.

    keep_last: how many of the newest stay. keep_every: those whose step is a multiple stay, too; 0
    for none.
    """

    def __init__(self, folder: Path, keep_last: int, keep_every: int):
        self.folder = folder
        self.keep_last, self.keep_every = keep_last, keep_every
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._pending: concurrent.futures.Future[None] | None = None
        self._saving: int | None = None

    def save(self, step: int, state: Any, record: Mapping[str, Any]) -> None:
        """Begin a save; returns as soon as the arrays may be changed. Every process calls this.

        Waits for the save before it, and raises what went wrong there.
        """
        self.wait()
        self._saving = step
        partial = self.folder / f"{step}.partial"
        try:
            if jax.process_index() == 0:
                shutil.rmtree(partial, ignore_errors=True)
            context = ocp.Context()
            context.array.saving.use_compression = False  # weights are noise to a compressor
            with context:
                response = ocp.save_async(partial.absolute(), state, checkpointable_name=PYTREE)
        except Exception as error:
            raise self._failed(error) from error
        self._pending = self._thread.submit(self._finish, response, step, dict(record))

    def wait(self) -> None:
        """Until no save is going on. Raises UserError if the last one failed."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except Exception as error:
            raise self._failed(error) from error

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, *exception: object) -> None:
        """Let a save that is going on end. What went wrong in it was raised by `wait`."""
        self._thread.shutdown()

    def _finish(self, response: Any, step: int, record: dict[str, Any]) -> None:
        response.result()  # on every process: Orbax is done on all of them
        if jax.process_index() != 0:
            return
        partial = self.folder / f"{step}.partial"
        (partial / RECORD).write_text(json.dumps(record, indent=1) + "\n")
        write_manifest(partial)
        flush_tree(partial)
        partial.rename(self.folder / str(step))
        flush(self.folder)
        for old in self._unwanted():
            # Renamed first: a kill while files go must not leave a checkpoint with holes.
            gone = self.folder / f"{old}.partial"
            (self.folder / str(old)).rename(gone)
            shutil.rmtree(gone)

    def _unwanted(self) -> list[int]:
        older = steps(self.folder)[: -self.keep_last]
        return [s for s in older if not (self.keep_every and s % self.keep_every == 0)]

    def _failed(self, error: Exception) -> UserError:
        reason = (str(error) or type(error).__name__).splitlines()[0][:1000]
        return UserError(
            f"{self.folder / str(self._saving)}: the checkpoint could not be written: {reason}\n"
            f"{newest(self.folder)} Make room or mend the folder, then start again."
        )


# ----------------------------------------------------------------------------------- resuming


def latest_good(folder: Path) -> int | None:
    """The newest step whose files are what they were when they were saved; None for no run yet.

    Damaged ones before it are named and renamed to STEP.damaged. Raises UserError if there are
    checkpoints and all are damaged: the run must not begin again at 0 on its own. Every process
    calls this and checks its share of the files.
    """
    found = steps(folder)
    for step in reversed(found):
        problems = verify(folder / str(step))
        if not _anywhere(bool(problems)):
            return step
        if problems:
            say(f"checkpoint of step {step} is damaged:\n{listing(problems)}")
        if step == found[0]:
            break
        if jax.process_index() == 0:
            aside = _free_name(folder / f"{step}.damaged")
            (folder / str(step)).rename(aside)
            say(f"It is now {aside.name}; falling back to the checkpoint before it.")
    if not found:
        return None
    raise UserError(
        f"{folder}: every checkpoint is damaged, see above; nothing was changed in {found[0]}. "
        "To begin again at step 0, give another --workdir."
    )


def verify(folder: Path) -> list[str]:
    """What is wrong with a checkpoint's files; of several processes each looks at its share."""
    return verify_files(folder, jax.process_index(), jax.process_count())


def restore(folder: Path, step: int, abstract: Any) -> Any:
    """The state of a verified checkpoint, every array born with the sharding in `abstract`."""
    path = (folder / str(step)).absolute()
    try:
        return ocp.load(path, abstract, checkpointable_name=PYTREE)
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:1000]
        raise UserError(f"{path}: does not fit this run: {reason}") from error


def remove_partial(folder: Path) -> None:
    """Take away what killed saves left. For the one process that owns the run."""
    for leftover in folder.glob("*.partial*"):
        say(f"removing {leftover}, a save that was killed")
        shutil.rmtree(leftover, ignore_errors=True)


def _anywhere(flag: bool) -> bool:
    """Whether the flag is set on any process."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def _free_name(path: Path) -> Path:
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate
