"""Checkpoints of a run: whole and verified under their name, or not there.

    CHECKPOINTS/STEP/               Orbax: params, optimizer, step (and spike guard, scores)
    CHECKPOINTS/STEP/run.json       of which run: settings, kept layers, tokenizer, data
    CHECKPOINTS/STEP/sha256.json    size and digest of every file; written last
    CHECKPOINTS/.saving-TOKEN/STEP  a save that is going on, or one that was killed; the folder
                                    carries our mark (disk/mark.py)
    CHECKPOINTS/STEP.damaged        found damaged on a resume, and left aside

A save runs in the background: Orbax copies the arrays to the host before `save` returns and
writes them after; then the files are hashed, flushed to disk and moved to their place. So what a
kill leaves is never taken for a checkpoint, and of what bears a number every byte is accounted for.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from chopjax.checkpoint.manifest import MANIFEST, verify_files, write_manifest
from chopjax.checkpoint.orbax_disk import Shapes, check_saved, orbax_path, seal, shapes_by_name
from chopjax.checkpoint.orbax_folder import PYTREE, anywhere
from chopjax.disk.atomic import flush, flush_tree
from chopjax.disk.mark import is_unfinished, make_folder, mark_new
from chopjax.errors import UserError, first_line, listing
from chopjax.progress import say

RECORD = "run.json"


def steps(folder: Path) -> list[int]:
    """Steps with a checkpoint, ascending. A name that is a number means that it was completed."""
    if not folder.is_dir():
        return []
    named = [p for p in folder.iterdir() if re.fullmatch("[0-9]{1,18}", p.name) and p.is_dir()]
    return sorted(int(path.name) for path in named)


def newest(folder: Path) -> str:
    """For people: what a run would go on from."""
    saved = steps(folder)
    if not saved:
        return f"There is no checkpoint in {folder} yet: the run would begin again at step 0."
    return f"Nothing saved is lost; the newest checkpoint is that of step {saved[-1]} in {folder}."


def read_record(folder: Path, step: int) -> dict[str, Any]:
    """run.json of a verified checkpoint."""
    record: dict[str, Any] = json.loads((folder / str(step) / RECORD).read_text())
    return record


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
        self._name = contextlib.ExitStack()  # under which Orbax knows the folder
        # Of all processes the same; the first one makes and marks it.
        self._partial = folder / f".saving-{_agreed_token():08x}"

    def save(self, step: int, state: Any, record: Mapping[str, Any]) -> None:
        """Begin a save; returns as soon as the arrays may be changed. Every process calls this.

        Waits for the save before it, and raises what went wrong there.
        """
        self.wait()
        self._saving = step
        partial = self._partial / str(step)
        try:
            if jax.process_index() == 0:
                if not self._partial.exists():
                    make_folder(self._partial)
                mark_new(self._partial, "train")
            context = ocp.Context()
            context.array.saving.use_compression = False  # weights are noise to a compressor
            name = self._name.enter_context(orbax_path(partial))
            with context:
                response = ocp.save_async(name, state, checkpointable_name=PYTREE)
        except Exception as error:
            self._name.close()
            raise self._failed(error) from error
        expected = shapes_by_name(state)
        self._pending = self._thread.submit(
            self._finish, response, name, expected, step, dict(record)
        )

    def wait(self) -> None:
        """Until no save is going on. Raises UserError if the last one failed."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except Exception as error:
            raise self._failed(error) from error
        finally:
            self._name.close()

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, *exception: object) -> None:
        """Let a save that is going on end. What went wrong in it was raised by `wait`."""
        self._thread.shutdown()
        self._name.close()

    def _finish(
        self, response: Any, name: Path, expected: Shapes, step: int, record: dict[str, Any]
    ) -> None:
        """name: under which Orbax knows the folder."""
        response.result()  # on every process: Orbax is done on all of them
        if jax.process_index() != 0:
            return
        check_saved(name, expected)
        partial = self._partial / str(step)
        seal(partial)
        (partial / RECORD).write_text(json.dumps(record, indent=1) + "\n")
        write_manifest(partial)
        flush_tree(partial)
        partial.rename(self.folder / str(step))
        flush(self.folder)
        for old in self._unwanted():
            # Moved first: a kill while files go must not leave a checkpoint with holes.
            (self.folder / str(old)).rename(self._partial / str(old))
        shutil.rmtree(self._partial)

    def _unwanted(self) -> list[int]:
        """Those that go; what holds a file that is not the checkpoint's stays."""
        older = [step for step in steps(self.folder) if is_checkpoint(self.folder / str(step))]
        return [
            step
            for step in older[: -self.keep_last]
            if not (self.keep_every and step % self.keep_every == 0)
            and not extras(self.folder / str(step))
        ]

    def _failed(self, error: Exception) -> UserError:
        place = self.folder / str(self._saving)
        return UserError(
            f"{place}: the checkpoint could not be written: {first_line(error)}\n"
            f"{newest(self.folder)} Free some space or repair the folder, then start again."
        )


# ----------------------------------------------------------------------------------- resuming


def latest_good(folder: Path) -> int | None:
    """The newest step whose files are what they were when they were saved; None for no run yet.

    Damaged ones before it are named and renamed to STEP.damaged. Raises UserError if there are
    checkpoints and all are damaged: the run must not begin again at 0 on its own. Every process
    calls this and checks its share of the files.
    """
    saved = steps(folder)
    for step in reversed(saved):
        problems = verify(folder / str(step))
        if not anywhere(bool(problems)):
            return step
        if problems:
            say(f"checkpoint of step {step} is damaged:\n{listing(problems)}")
        if step == saved[0]:
            break
        if not is_checkpoint(folder / str(step)):
            raise UserError(
                f"{folder / str(step)} is not a checkpoint that chopjax wrote, though named like "
                "one; move it away"
            )
        if jax.process_index() == 0:
            aside = _free_name(folder / f"{step}.damaged")
            (folder / str(step)).rename(aside)
            say(f"It is now {aside.name}; falling back to the checkpoint before it.")
    if not saved:
        return None
    raise UserError(
        f"{folder}: every checkpoint is damaged, see above; nothing was changed in {saved[0]}. "
        "To begin again at step 0, give another --workdir."
    )


def verify(folder: Path) -> list[str]:
    """What is wrong with a checkpoint's files; of several processes each looks at its share."""
    return verify_files(folder, jax.process_index(), jax.process_count())


def restore(folder: Path, step: int, abstract: Any) -> Any:
    """The state of a verified checkpoint, every array born with the sharding in `abstract`."""
    path = (folder / str(step)).absolute()
    try:
        with orbax_path(path) as name:
            return ocp.load(name, abstract, checkpointable_name=PYTREE)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}: does not fit this run: {first_line(error)}") from error


def remove_partial(folder: Path) -> None:
    """Take away what killed saves left. For the one process that owns the run."""
    for leftover in folder.glob(".saving-????????"):
        if is_saving(leftover):
            say(f"removing {leftover}, a save that was killed")
            shutil.rmtree(leftover, ignore_errors=True)


def is_saving(path: Path) -> bool:
    """Whether a folder in CHECKPOINTS is that of a save, by its name and its mark."""
    return path.name.startswith(".saving-") and is_unfinished(path, "train")


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a checkpoint of ours, perhaps a damaged one: of its three parts two."""
    present = [(folder / name).exists() for name in (RECORD, MANIFEST, PYTREE)]
    return not folder.is_symlink() and sum(present) >= 2


def extras(folder: Path) -> list[str]:
    """What is in a checkpoint's folder and not in its list; names, sorted."""
    try:
        known = set(json.loads((folder / MANIFEST).read_text())) | {MANIFEST}
    except (OSError, ValueError, TypeError):
        return [MANIFEST]
    known |= {parent.as_posix() for name in known for parent in PurePosixPath(name).parents}
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    return sorted(name for name in names if name not in known or (folder / name).is_symlink())


def _agreed_token() -> int:
    token = np.int32(secrets.randbits(31))
    if jax.process_count() == 1:
        return int(token)
    return int(multihost_utils.broadcast_one_to_all(token))


def _free_name(path: Path) -> Path:
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate
