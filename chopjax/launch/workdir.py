"""A run's folder: one run at a time works in it, and all of its processes see the same one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from chopjax.disk.mark import MARK
from chopjax.errors import UserError
from chopjax.launch.distributed import wait_for_all
from chopjax.progress import say

LOCK = ".lock"


@contextlib.contextmanager
def owned(workdir: Path, check: Callable[[Path], None], flag: str = "--workdir") -> Iterator[None]:
    """Create the folder and lock it. Raises UserError if it cannot be written or is in use.
    Where the block fails and has written nothing but the mark, the folder goes again.

    check: raises UserError where other files are in the way; nothing is written then. flag: which
    one gave the folder, for messages.

    Of several processes the first one locks it, and the others must see its lock: a host that has
    not mounted the file system would lose its part of every checkpoint. The lock is released with
    the process, however it ends. The folder must be on a file system, because checkpoints rely on
    atomic renames, which buckets do not have.
    """
    if ":/" in str(workdir):  # Path("gs://bucket") is gs:/bucket
        raise UserError(
            f"{flag} {str(workdir).replace(':/', '://', 1)}: a URL; give a folder on a file "
            "system that every host mounts (tpu_scripts/README.md shows how), and copy checkpoints "
            "to a bucket after"
        )
    handle, problem = None, None
    made = [path for path in (workdir, *workdir.parents) if not path.exists()]
    if jax.process_index() == 0:
        try:
            check(workdir)
            handle = _lock(workdir, flag)
        except UserError as error:
            problem = error
    try:
        if jax.process_count() > 1:
            # Even if locking failed: the others wait here.
            token = secrets.randbits(31) if problem is None else 0
            if handle is not None:
                os.pwrite(handle, f"{os.getpid()} {token}".encode(), 0)
                os.fsync(handle)
            wait_for_all("workdir")
            _find_token(workdir, flag, int(multihost_utils.broadcast_one_to_all(np.int32(token))))
        if problem is not None:
            raise problem
        yield
    except BaseException:
        if handle is not None and workdir in made:
            _leave_nothing(made)
        raise
    finally:
        if handle is not None:
            os.close(handle)


def _leave_nothing(made: Sequence[Path]) -> None:
    """Remove folders that this process made, the innermost first, if it holds no more than it got
    from here."""
    workdir = made[0]
    own = [workdir / name for name in (LOCK, MARK)]
    below = sorted(workdir.rglob("*"), reverse=True)
    folders = [path for path in below if path.is_dir() and not path.is_symlink()]
    if set(below) - {*own, *folders}:
        return
    with contextlib.suppress(OSError):  # somebody has written there meanwhile
        for folder in folders:
            folder.rmdir()
        for path in own:
            path.unlink(missing_ok=True)
        for folder in made:
            folder.rmdir()


def _lock(workdir: Path, flag: str) -> int:
    """The locked file's descriptor; the file holds this process's id."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if (workdir / LOCK).is_symlink() or not _is_lock(workdir / LOCK):
            raise UserError(f"{workdir / LOCK} is not the lock of a chopjax run; move it away")
        handle = os.open(workdir / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        reason = "is not a folder" if isinstance(error, FileExistsError) else error.strerror
        raise UserError(f"{flag} {workdir}: {reason}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(handle, 64).decode().partition(" ")[0] or "unknown"
        os.close(handle)
        raise UserError(
            f"{flag} {workdir}: another run works in this folder (process {owner}); wait for "
            "it or give another folder"
        ) from None
    except OSError:  # a file system without locks
        say(f"{workdir} cannot be locked; make sure that no other run works in it")
    os.truncate(handle, 0)
    os.pwrite(handle, str(os.getpid()).encode(), 0)
    return handle


def _is_lock(path: Path) -> bool:
    """Whether the file is missing or one that `owned` wrote: one or two numbers, or nothing."""
    if not path.exists():
        return True
    if not path.is_file() or path.stat().st_size > 64:
        return False
    return bool(re.fullmatch(rb"(\d+( \d+)?)?", path.read_bytes()))


def _find_token(workdir: Path, flag: str, token: int) -> None:
    """Raise UserError unless every process finds what process 0 has written."""
    if not token:
        raise UserError(f"{flag} {workdir}: process 0 cannot use it and says why")
    try:
        seen = (workdir / LOCK).read_text().endswith(f" {token}")
    except OSError:
        seen = False
    where = multihost_utils.process_allgather(np.array(seen))
    if not where.all():
        blind = ", ".join(str(index) for index in np.flatnonzero(~where))
        raise UserError(
            f"{flag} {workdir}: processes {blind} do not see the folder of process 0 under that "
            "name; it must lie on a file system that every host has mounted"
        )
