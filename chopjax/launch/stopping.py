"""SIGTERM and Ctrl-C in training: it saves, and the process exits with a code that says why."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

from chopjax import interrupts
from chopjax.launch.distributed import EXIT_PREEMPTED

ANNOUNCEMENT = "stopping after this step and saving; Ctrl-C to stop without saving"


class StopRequest:
    """Whether SIGTERM or Ctrl-C has asked the run to stop.

    Before training begins there is nothing to save, and the run ends as other work does
    (interrupts.py). After that it stops at the end of the current step and saves; a second Ctrl-C
    stops it without saving. With several processes, SIGTERM to any of them is enough: jax's
    preemption service catches it, tells the others and picks a step that none has reached yet.
    Ctrl-C in one of several ends the run without saving (distributed.py).
    """

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._preempted = False
        self._calls = 0

    @property
    def signal(self) -> int | None:
        if self._preempted:
            return signal.SIGTERM
        return interrupts.asked() if jax.process_count() == 1 else None

    def __bool__(self) -> bool:
        return self.signal is not None

    def begin_training(self) -> None:
        if jax.process_count() == 1:
            self._stack.enter_context(interrupts.deferred(ANNOUNCEMENT))

    def agreed(self) -> bool:
        """Whether to stop here; every process must call it at the same places."""
        self._calls += 1
        if jax.process_count() > 1:
            interrupts.check()
            if not self._preempted:
                self._preempted = multihost_utils.reached_preemption_sync_point(self._calls)
        return bool(self)


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Catch SIGTERM and SIGINT while the block runs."""
    with contextlib.ExitStack() as stack:
        if jax.process_count() == 1:
            stack.enter_context(interrupts.watching(EXIT_PREEMPTED))
        yield StopRequest(stack)
