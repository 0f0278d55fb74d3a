"""SIGTERM and Ctrl-C: what is trained gets saved, and the process ends with a code that says so."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils

from chopjax.progress import say
from chopjax.train.peers import EXIT_PREEMPTED


class StopRequest:
    """Whether SIGTERM or Ctrl-C has asked the run to stop.

    Before training begins there is nothing to save, and the process ends at once. Then it stops
    after the step at hand, and a second Ctrl-C stops without a save. Of several processes one may
    be asked: jax's preemption service, which there is the one to catch SIGTERM, tells the others
    and finds a step that all have yet to reach.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._training = False
        self._calls = 0

    def __bool__(self) -> bool:
        return self.signal is not None

    def begin_training(self) -> None:
        self._training = True

    def agreed(self) -> bool:
        """Whether to stop here. Every process must call it equally often, at the same places."""
        self._calls += 1
        if self or jax.process_count() == 1:
            return bool(self)
        if multihost_utils.reached_preemption_sync_point(self._calls):
            self.signal = signal.SIGTERM
        return bool(self)

    def receive(self, number: int, frame: FrameType | None) -> None:
        if not self._training:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(EXIT_PREEMPTED)
        self.signal = number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        name = "SIGTERM" if number == signal.SIGTERM else "Ctrl-C"
        say(f"\n{name}: stopping after this step and saving; Ctrl-C to stop without")

    def end_at_once(self, signals: socket.socket) -> None:
        """SIGTERM while the main thread compiles for minutes, which hears of it only after."""
        while numbers := signals.recv(16):
            if signal.SIGTERM in numbers and not self._training:
                say("\nSIGTERM: nothing was trained since the start; ending at once")
                os._exit(EXIT_PREEMPTED)


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Catch SIGTERM and SIGINT while the block runs."""
    request = StopRequest()
    if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
        yield request  # signals reach the main thread alone
        return
    caught = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, request.receive) for number in caught}
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    descriptor = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=request.end_at_once, args=(ours,), daemon=True).start()
    try:
        yield request
    finally:
        signal.set_wakeup_fd(descriptor)
        theirs.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def end_on_sigterm() -> None:
    """Until a run catches it: one that has not begun is to be started again."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: os._exit(EXIT_PREEMPTED))
