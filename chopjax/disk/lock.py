"""A folder for one process at a time. No jax."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from chopjax.errors import UserError

ATTEMPTS = 10


@contextlib.contextmanager
def locked(file: Path, busy: str) -> Iterator[None]:
    """Hold a lock file, which is made where it is missing, until the block or the process ends.

    busy: the message of the UserError where another process holds it. Raises FileNotFoundError
    where the file's folder is not there, or goes while the file is being locked.
    """
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(busy) from None
        if not os.path.samestat(os.fstat(lock.fileno()), file.stat()):
            raise FileNotFoundError(f"{file} is another file now")
        yield


@contextlib.contextmanager
def locked_in(make_folder: Callable[[], None], file: Path, busy: str) -> Iterator[None]:
    """`locked`, in a folder that whoever holds the lock removes in the end.

    make_folder: makes sure that it is there; called again where another process, which has just
    finished, takes it away meanwhile. Raises FileNotFoundError where that happens ATTEMPTS times:
    some file systems refuse a new folder so.
    """
    with contextlib.ExitStack() as stack:
        for left in reversed(range(ATTEMPTS)):
            try:
                make_folder()
                stack.enter_context(locked(file, busy))
                break
            except FileNotFoundError:
                if not left:
                    raise
        yield
