"""A run's folder: one process at a time owns it, and stops when it is told to."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import jax
from jax.experimental import multihost_utils

from chopjax.errors import UserError
from chopjax.progress import say

LOCK = ".lock"
# EX_TEMPFAIL of sysexits.h: saved after SIGTERM, start me again. tpu_scripts/ wait for it.
EXIT_PREEMPTED = 75


@contextlib.contextmanager
def owned(workdir: Path) -> Iterator[None]:
    """Create the folder and hold it. Raises UserError if it cannot be written or is in use.

    Of several processes the first one locks it. The lock goes with the process, however it ends.
    The folder lies on a file system: what is
    saved there counts on renames that happen whole or not at all, which buckets do not have.
    """
    if ":/" in str(workdir):  # Path("gs://bucket") is gs:/bucket
        raise UserError(
            f"--workdir {workdir}: a URL; give a folder on a file system that every host mounts"
        )
    if jax.process_index() != 0:
        yield
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        handle = os.open(workdir / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"--workdir {workdir}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"--workdir {workdir}: another run works in this folder (process "
                f"{os.read(handle, 32).decode() or 'unknown'}); wait for it or give another folder"
            ) from None
        except OSError:  # a file system without locks
            say(f"{workdir} cannot be locked; take care that no other run works in it")
        os.truncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)


class StopRequest:
    """Whether SIGTERM or Ctrl-C has asked the run to stop; it stops after the step at hand.

    A second Ctrl-C stops at once, with what was saved before. Of several processes one may be
    asked: jax's preemption service, which then is the one to catch SIGTERM, tells the others and
    finds a step that all have yet to reach.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def agreed(self, step: int) -> bool:
        """Whether the run stops after this step; every process calls it after every step."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.signal = signal.SIGTERM
        return bool(self)

    def receive(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        name = "SIGTERM" if number == signal.SIGTERM else "Ctrl-C"
        say(f"\n{name}: stopping after this step and saving; Ctrl-C to stop without")


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Catch SIGTERM and SIGINT while the block runs."""
    request = StopRequest()
    if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
        yield request  # signals reach the main thread alone
        return
    caught = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, request.receive) for number in caught}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_for_all(what: str) -> None:
    """Until every process is here; `what` names the place."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"chopjax train: {what}")
