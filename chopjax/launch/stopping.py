"""SIGTERM and Ctrl-C: what is trained gets saved, and the process ends with a code that says so."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

from chopjax import interrupts
from chopjax.launch.peers import EXIT_PREEMPTED

ANNOUNCEMENT = "stopping after this step and saving; Ctrl-C to stop without"


class StopRequest:
    """Whether SIGTERM or Ctrl-C has asked the run to stop.

    Before training begins there is nothing to save, and the run ends as other work does
    (interrupts.py). Then it stops after the step at hand, and a second Ctrl-C stops without a save.
    Of several processes one may be asked: jax's preemption service, which there is the one to catch
    SIGTERM, tells the others and finds a step that all have yet to reach. Ctrl-C in one of several
    ends the run without a save.
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
        """Whether to stop here. Every process must call it equally often, at the same places."""
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
