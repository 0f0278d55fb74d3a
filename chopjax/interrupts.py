"""Ctrl-C and SIGTERM: work stops at its next safe point or, after too long, at once.

A signal handler must not raise: the exception would surface wherever the main thread happens to be,
in a callback of the garbage collector or of C++, which swallow it, or half-way through taking a
lock. So the handler only records the signal, and work calls `check` between its pieces, which
raises.

When no piece finishes within PATIENCE_SECONDS (imports, a compilation, a disk that does not
answer), or at a second signal, a thread ends the process at once. It learns of signals through the
wakeup descriptor, even while the main thread is in C. Half-written files and child processes are
removed first (`at_end`); renames that belong together are not interrupted (`whole`). Nothing is
lost, since a file under its final name is always complete; training, which has to save its state,
asks for more time (`deferred`).

This module is imported before everything else and therefore uses the standard library only.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

PATIENCE_SECONDS = 2.0  # for a piece of work to finish before the process is ended
END_SECONDS = 5.0  # for cleaning up
LOOK_SECONDS = 0.1  # between looks at the clock after a signal
EXIT_TERMINATED = 128 + signal.SIGTERM  # as shells do
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "stopped by SIGTERM"}


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, as raised between two pieces of work."""


class _Watch:
    """Records the signals of this process.

    name: of the program, for its final message; None where the process belongs to someone else,
    such as a notebook: there Ctrl-C raises KeyboardInterrupt as usual, except while work has
    deferred it. terminated: the exit code after SIGTERM.
    """

    def __init__(self, name: str | None, terminated: int):
        self.name, self.terminated = name, terminated
        self.asked: int | None = None  # the first signal
        self.announcement: str | None = None  # of work that looks at `asked` itself
        self.advice: Callable[[], str] = lambda: "the same command starts again"
        self._first: int | None = None  # that the thread read
        self._since = math.inf  # when PATIENCE_SECONDS began

    def start(self) -> Callable[[], None]:
        """Returns a function that undoes this."""
        ours, theirs = os.pipe()
        os.set_blocking(theirs, False)
        descriptor = signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(ours,), name="signals", daemon=True).start()
        # An ignored signal stays ignored: nohup and `&` in scripts rely on it.
        kept = (signal.SIG_IGN, None)
        before = {n: h for n in WORDS if (h := signal.getsignal(n)) not in kept}
        for number in before:
            signal.signal(number, self._note)

        def undo() -> None:
            signal.set_wakeup_fd(descriptor)
            os.close(theirs)
            for number, handler in before.items():
                signal.signal(number, handler)

        return undo

    def _note(self, number: int, frame: FrameType | None) -> None:
        """The handler, in the main thread."""
        again = self.asked is not None
        if self.name is None and number == signal.SIGINT and (again or not self.announcement):
            raise KeyboardInterrupt
        if not again:
            self.asked = number

    def _listen(self, signals: int) -> None:
        """The body of the thread."""
        while True:
            seconds = None if self._first is None else LOOK_SECONDS
            if select.select([signals], [], [], seconds)[0]:
                numbers = os.read(signals, 64)
                if not numbers:
                    os.close(signals)
                    return  # the other end was closed
                for number in numbers:
                    self._hear(number)
            if not self.announcement and time.monotonic() - self._since > PATIENCE_SECONDS:
                self.end()

    def _hear(self, number: int) -> None:
        ours = self.name is not None
        if number not in WORDS or not (ours or self.announcement or number == signal.SIGTERM):
            return  # irrelevant, or raised by `_note`
        if self._first is None:
            self._first, self._since = number, time.monotonic()
            if ours and self.asked is None:
                self.asked = number
            if self.announcement:
                which = "SIGTERM" if number == signal.SIGTERM else "Ctrl-C"
                _write(f"\n{which}: {self.announcement}\n")
        # A machine that is being preempted may send SIGTERM twice; there is still time to save.
        elif ours and (number == signal.SIGINT or not self.announcement):
            self.asked = number
            self.end()

    def restart_clock(self) -> None:
        if self._since != math.inf:
            self._since = time.monotonic()

    @property
    def code(self) -> int:
        return self.terminated if self._number == signal.SIGTERM else 128 + signal.SIGINT

    @property
    def _number(self) -> int:
        return self.asked or self._first or signal.SIGINT

    def end(self) -> None:
        """End the process; does not return."""
        with contextlib.suppress(RuntimeError):  # no more threads
            guard = threading.Timer(END_SECONDS, os._exit, (self.code,))
            guard.daemon = True
            guard.start()
        _whole.acquire()  # never released: any other thread that asks for it waits for the exit
        if self.name is not None:
            with contextlib.suppress(Exception):
                words = WORDS[signal.Signals(self._number)]
                _write(f"{_leave_bar()}{self.name}: {words}; {self.advice()}\n")
            # Errors of other threads, whose files are now being removed, would only confuse.
            with contextlib.suppress(OSError):
                nothing = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, 1)
                os.dup2(nothing, 2)
        for _ in range(2):  # other threads may write again during the first round
            for action in reversed(list(_actions)):
                with contextlib.suppress(Exception):
                    action()
        os._exit(self.code)


_watch: _Watch | None = None
_actions: list[Callable[[], object]] = []
_whole = threading.RLock()


# ------------------------------------------------------------------ For whoever starts work


@contextlib.contextmanager
def program(name: str) -> Iterator[None]:
    """The block is the whole purpose of this process. name: for the message after a signal.

    Handlers stay installed after the block, because the interpreter's exit takes time as well.
    """
    global _watch
    if _watch is None and threading.current_thread() is threading.main_thread():
        _watch = _Watch(name, EXIT_TERMINATED)
        _watch.start()
        atexit.register(_ignore)  # registered first, so called last
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if asked() is not None:
            end()
        raise
    finally:
        with _whole:  # held forever by a thread that ends the process
            pass


@contextlib.contextmanager
def watching(terminated: int) -> Iterator[None]:
    """Record signals while the block runs, even if nothing does so for the whole process.
    Does nothing outside the main thread, which is the only one that receives signals.

    terminated: the exit code after SIGTERM.
    """
    global _watch
    if threading.current_thread() is not threading.main_thread():
        yield
    elif _watch is not None:
        before, _watch.terminated = _watch.terminated, terminated
        yield  # after an exception the process ends with this block's code
        _watch.terminated = before
    else:
        _watch = _Watch(None, terminated)
        undo = _watch.start()
        try:
            yield
        finally:
            undo()
            _watch = None


def end() -> None:
    """End the program as a signal would; returns if the process is not ours to end."""
    if _watch is not None and _watch.name is not None:
        _watch.end()


def _ignore() -> None:
    """At the very end: the interpreter would otherwise restore the default, which kills."""
    for number in WORDS:
        signal.signal(number, signal.SIG_IGN)


# --------------------------------------------------------------------------- For work itself


def asked() -> int | None:
    """The signal that asks to stop; None to go on."""
    return None if _watch is None else _watch.asked


def check() -> None:
    """Call between two pieces of work, in any thread: raises if a signal asks to stop.

    Raises Interrupted, or SystemExit after SIGTERM.
    """
    if _watch is None or _watch.asked is None or _watch.announcement:
        return
    if _watch.asked == signal.SIGTERM:
        raise SystemExit(_watch.terminated)
    raise Interrupted


def advise(advice: str | Callable[[], str]) -> None:
    """From here on, what the message after a signal advises; a function is called at that time."""
    if _watch is not None:
        _watch.advice = advice if callable(advice) else lambda: advice


@contextlib.contextmanager
def deferred(announcement: str) -> Iterator[None]:
    """The block looks at `asked` itself and ends once it has saved, however long that takes; only
    a second Ctrl-C ends it sooner. announcement: printed after the first signal."""
    check()
    watch = _watch
    if watch is None:
        yield
        return
    watch.announcement = announcement
    try:
        yield
    finally:
        watch.restart_clock()
        watch.announcement = None


@contextlib.contextmanager
def at_end(action: Callable[[], object]) -> Iterator[None]:
    """Call `action`, which must be quick, if the process is ended while the block runs."""
    _actions.append(action)
    try:
        yield
    finally:
        _actions.remove(action)


@contextlib.contextmanager
def whole() -> Iterator[None]:
    """Quick work that must not be cut in two by the end of the process."""
    with _whole:
        yield


@contextlib.contextmanager
def running(process: BaseProcess) -> Iterator[None]:
    """Start a process; it is killed when the block ends, or when this process does.

    It never receives these signals, not even while its Python starts, where Ctrl-C would end in a
    traceback. Its arguments should be small: this process cannot be ended until they are read.
    """
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # else it starts with the process, which unblocks signals
    with contextlib.ExitStack() as stack:
        with _whole:
            before = signal.pthread_sigmask(signal.SIG_BLOCK, set(WORDS))
            try:
                process.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            stack.enter_context(at_end(process.kill))
        try:
            yield
        finally:
            process.kill()
            process.join()


def end_with_parent() -> None:
    """In a process started by `running`: exit when its parent exits, even if that is killed."""
    from multiprocessing import connection, parent_process

    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, name="parent", daemon=True).start()


# ------------------------------------------------------------------------------- Messages


def _write(text: str) -> None:
    """Bypasses Python's buffers, which the main thread may hold; never waits for the reader."""
    with contextlib.suppress(OSError, ValueError):
        if select.select([], [2], [], 0.5)[1]:
            os.write(2, text.encode(errors="replace"))


def _leave_bar() -> str:
    """Leaves the line of a progress bar and shows the cursor, which the bar has hidden."""
    return "\x1b[?25h\n" if os.isatty(2) else ""
