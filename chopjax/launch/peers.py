"""When one process of a run fails, the others end as well and say why.

jax aborts the others when a process is gone and its heartbeat stops. A process whose Python raised
is not gone: at its exit jax waits five minutes for the others, which wait for it in a collective.
So it writes why it failed into jax's key-value store, where a thread of every other process looks
once a second (the main thread may be in a collective), and exits without waiting.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from jax.errors import JaxRuntimeError

from chopjax import interrupts
from chopjax.errors import UserError, first_line
from chopjax.progress import say

# EX_TEMPFAIL of sysexits.h: stopped from outside, start me again. tpu_scripts/ wait for it.
EXIT_PREEMPTED = 75
# EX_UNAVAILABLE: another process died. Start all again, but look at why.
EXIT_PEER_LOST = 69
EXIT_INTERRUPTED = 130  # as a shell says it for SIGINT

POLL_SECONDS = 1.0
GRACE_SECONDS = 3.0  # in which a process may fail by itself, over the same mistake
EXIT_SECONDS = 20.0  # in which a process that failed exits, whatever threads it still has
LAST_SECONDS = 10.0  # for which process 0 waits for the others to exit
FAILURE, EXITING = "chopjax/failure", "chopjax/exiting"  # folders of the key-value store
# What collectives on CPUs and GPUs raise when the process at the other end is gone.
LOST_CONNECTION = re.compile(
    r"gloo.*(connection (reset|closed)|broken pipe)|remote process exited", re.I | re.S
)


@contextlib.contextmanager
def ending_together(
    store: Any, count: int, index: int, advice: Callable[[], str]
) -> Iterator[None]:
    """While the block runs, a failure of one process ends all of them.

    store: jax's client of its key-value store. count, index: of the processes. advice: what to say
    after another one's failure: what is saved, what to do.
    """
    group = _Group(store, count, index, advice)
    threading.Thread(target=group.watch, name="peers", daemon=True).start()
    with interrupts.at_end(group.interrupted):
        try:
            yield
        except BaseException as error:
            group.fail(error)
            raise
        finally:
            group.leaving.set()


class _Group:
    def __init__(self, store: Any, count: int, index: int, advice: Callable[[], str]):
        self._store, self._count, self._index, self._advice = store, count, index, advice
        self.leaving = threading.Event()  # this process ends by itself
        self._ending = threading.Lock()

    def watch(self) -> None:
        """In a thread of its own: exit after another process's failure."""
        while not self.leaving.wait(POLL_SECONDS):
            if failure := self._failure():
                if not self.leaving.wait(0 if failure[1] == EXIT_INTERRUPTED else GRACE_SECONDS):
                    self._follow(*failure)
                return

    def fail(self, error: BaseException) -> None:
        """Tell the others, and see to it that this process exits without waiting for them."""
        if isinstance(error, Exception) and not isinstance(error, UserError):
            # A collective raises where another process has gone: the reason to tell is that one's.
            if failure := self._failure():
                self._follow(*failure)
            if LOST_CONNECTION.search(str(error)):
                self._publish(
                    "lost its connection to another process, which crashed or was killed (as for "
                    "want of memory)",
                    EXIT_PEER_LOST,
                )
                self._follow(*self._failure() or ("", EXIT_PEER_LOST))
        code = _code_of(error)
        if isinstance(error, KeyboardInterrupt):
            self.interrupted()
        elif code not in (0, EXIT_PREEMPTED):  # with those all processes end, in order
            self._publish(f"failed: {first_line(error)}", code)
        else:
            return
        atexit.register(self._exit, code)  # runs before jax's, which was registered earlier
        timer = threading.Timer(EXIT_SECONDS, self._exit, (code,))
        timer.daemon = True
        timer.start()

    def interrupted(self) -> None:
        self._publish("was interrupted", EXIT_INTERRUPTED)
        self._go_last()  # what follows a Ctrl-C may skip `_exit`

    def _publish(self, what: str, code: int) -> None:
        """The first failure counts; later ones come of it."""
        who = f"process {self._index} on {socket.gethostname()}"
        with contextlib.suppress(JaxRuntimeError):  # one is there, or process 0 is gone
            self._store.key_value_set(f"{FAILURE}/first", json.dumps([f"{who} {what}", code]))

    def _failure(self) -> tuple[str, int] | None:
        """What happened and the exit code for all; None while nothing has."""
        try:
            found = self._store.key_value_dir_get(FAILURE)
        except JaxRuntimeError:  # process 0 is gone, and jax ends this process
            return None
        return tuple(json.loads(found[0][1])) if found else None

    def _follow(self, what: str, code: int) -> NoReturn:
        self._ending.acquire()  # and never released: of two threads one speaks
        say(f"\nerror: {what}\n{self._advice()}")
        self._exit(code)

    def _exit(self, code: int) -> NoReturn:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        self._go_last()
        os._exit(code)

    def _go_last(self) -> None:
        """Process 0 waits for the others, which jax aborts when its service is gone."""
        deadline = time.monotonic() + LAST_SECONDS
        with contextlib.suppress(JaxRuntimeError):
            if self._index:
                self._store.key_value_set(f"{EXITING}/{self._index}", "", allow_overwrite=True)
            for other in range(1, self._count if self._index == 0 else 0):
                left = max(0, int(1000 * (deadline - time.monotonic())))
                self._store.blocking_key_value_get(f"{EXITING}/{other}", left)


def _code_of(error: BaseException) -> int:
    """The exit code that the command line makes of it."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    return 2 if isinstance(error, UserError) else 1
