"""Ctrl-C and SIGTERM: work ends between two pieces of it, or, where that takes too long, at once.

A signal's handler must not raise. What it raises comes up wherever the main thread happens to be:
in a callback of the garbage collector or of C++, which swallow it, or half-way through taking a
lock. So the handler takes a note, and work looks at it between its pieces: `check` raises there.

Where no piece comes to its end within PATIENCE_SECONDS (imports, a compilation, a disk that does
not answer), and at a second signal, a thread ends the process at once. It hears of signals through
the wakeup descriptor, also while the main thread is in C. What is half-written and the process's
children go first (`at_end`); renames that belong together are not cut in two (`whole`). Nothing is
lost that way, since what bears its final name is complete; training, which has its state to save,
asks for more time (`deferred`).

This is imported before everything else, so that it needs the standard library alone.
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

PATIENCE_SECONDS = 2.0  # in which a piece of work ends, or the process does
END_SECONDS = 5.0  # for all that the end has left to do
LOOK_SECONDS = 0.1  # between looks at the clock, once a signal has come
EXIT_TERMINATED = 128 + signal.SIGTERM  # as a shell says it
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "stopped by SIGTERM"}


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, as raised between two pieces of work."""


class _Watch:
    """Signals of one process, from now on.

    name: of the program, for its last words; None where others own the process, as a notebook
    does: there Ctrl-C raises KeyboardInterrupt as usual, save where work has asked to be left to
    its end. terminated: the exit code after SIGTERM.
    """

    def __init__(self, name: str | None, terminated: int):
        self.name, self.terminated = name, terminated
        self.asked: int | None = None  # the first signal
        self.announcement: str | None = None  # of work that looks at `asked` by itself
        self.patience = PATIENCE_SECONDS
        self.advice: Callable[[], str] = lambda: "the same command starts again"
        self._first: int | None = None  # as heard by the thread
        self._since = math.inf  # when the time began to run

    def start(self) -> Callable[[], None]:
        """Returns what takes it all back."""
        ours, theirs = os.pipe()
        os.set_blocking(theirs, False)
        descriptor = signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(ours,), name="signals", daemon=True).start()
        # What is ignored stays so: whoever started us wants that, as nohup and `&` in scripts do.
        kept = (signal.SIG_IGN, None)
        before = {n: h for n in WORDS if (h := signal.getsignal(n)) not in kept}
        for number in before:
            signal.signal(number, self._note)

        def take_back() -> None:
            signal.set_wakeup_fd(descriptor)
            os.close(theirs)
            for number, handler in before.items():
                signal.signal(number, handler)

        return take_back

    def _note(self, number: int, frame: FrameType | None) -> None:
        """The handler, in the main thread."""
        again = self.asked is not None
        if self.name is None and number == signal.SIGINT and (again or not self.announcement):
            raise KeyboardInterrupt
        if not again:
            self.asked = number

    def _listen(self, signals: int) -> None:
        """In a thread of its own."""
        while True:
            seconds = None if self._first is None else LOOK_SECONDS
            if select.select([signals], [], [], seconds)[0]:
                numbers = os.read(signals, 64)
                if not numbers:
                    os.close(signals)
                    return  # the other end was closed
                for number in numbers:
                    self._hear(number)
            if not self.announcement and time.monotonic() - self._since > self.patience:
                self.end()

    def _hear(self, number: int) -> None:
        ours = self.name is not None
        if number not in WORDS or not (ours or self.announcement or number == signal.SIGTERM):
            return  # not of interest, or raised by `_note`
        if self._first is None:
            self._first, self._since = number, time.monotonic()
            if ours and self.asked is None:
                self.asked = number
            if self.announcement:
                which = "SIGTERM" if number == signal.SIGTERM else "Ctrl-C"
                _write(f"\n{which}: {self.announcement}\n")
        # A machine that is taken away may say so twice; there is still time to save.
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
        _whole.acquire()  # and never given back: who comes next waits for the end
        if self.name is not None:
            with contextlib.suppress(Exception):
                words = WORDS[signal.Signals(self._number)]
                _write(f"{_past_bar()}{self.name}: {words}; {self.advice()}\n")
            # What falls over in other threads, now that their files go, is of no interest.
            with contextlib.suppress(OSError):
                nothing = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, 1)
                os.dup2(nothing, 2)
        for _ in range(2):  # other threads may write on while the first round goes
            for action in reversed(list(_actions)):
                with contextlib.suppress(Exception):
                    action()
        os._exit(self.code)


_watch: _Watch | None = None
_actions: list[Callable[[], object]] = []
_whole = threading.RLock()


# ------------------------------------------------------------------ For who starts the work


@contextlib.contextmanager
def program(name: str) -> Iterator[None]:
    """The block is all that this process is for. name: said when it is interrupted.

    Handlers stay after the block, for the interpreter's own end takes its time as well.
    """
    global _watch
    if _watch is None and threading.current_thread() is threading.main_thread():
        _watch = _Watch(name, EXIT_TERMINATED)
        _watch.start()
        atexit.register(_ignore)  # the first one in, which is the last to be called
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if asked() is not None:
            end()
        raise
    finally:
        with _whole:  # held for ever by a thread that ends the process
            pass


@contextlib.contextmanager
def watching(terminated: int) -> Iterator[None]:
    """Signals are noted while the block runs, also where nobody has done so for the whole process.
    In another thread than the main one nothing changes: signals reach that one alone.

    terminated: the exit code after SIGTERM.
    """
    global _watch
    if threading.current_thread() is not threading.main_thread():
        yield
    elif _watch is not None:
        before, _watch.terminated = _watch.terminated, terminated
        yield  # left by an error, the process ends with this block's code
        _watch.terminated = before
    else:
        _watch = _Watch(None, terminated)
        take_back = _watch.start()
        try:
            yield
        finally:
            take_back()
            _watch = None


def end() -> None:
    """End the program as a signal would; returns where the process is not ours to end."""
    if _watch is not None and _watch.name is not None:
        _watch.end()


def _ignore() -> None:
    """All is done; the interpreter would otherwise put back what kills."""
    for number in WORDS:
        signal.signal(number, signal.SIG_IGN)


# ----------------------------------------------------------------------- For those who work


def asked() -> int | None:
    """The signal that asks to stop; None to go on."""
    return None if _watch is None else _watch.asked


def check() -> None:
    """Between two pieces of work, in any thread: raise if a signal asks to stop.

    Raises Interrupted, or SystemExit after SIGTERM.
    """
    if _watch is None or _watch.asked is None or _watch.announcement:
        return
    if _watch.asked == signal.SIGTERM:
        raise SystemExit(_watch.terminated)
    raise Interrupted


def advise(advice: str | Callable[[], str]) -> None:
    """How to go on after an interruption from here on; a function is asked at the end."""
    if _watch is not None:
        _watch.advice = advice if callable(advice) else lambda: advice


@contextlib.contextmanager
def deferred(announcement: str) -> Iterator[None]:
    """The block looks at `asked` by itself and ends when it has saved, however long that takes;
    only a second Ctrl-C ends it sooner. announcement: said after the first signal."""
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


def be_patient(seconds: float) -> None:
    """From here on a signal has so much time to take effect, for others have to be told."""
    if _watch is not None:
        _watch.patience = seconds


@contextlib.contextmanager
def at_end(action: Callable[[], object]) -> Iterator[None]:
    """Do this, quickly, if the process ends at once while the block runs."""
    _actions.append(action)
    try:
        yield
    finally:
        _actions.remove(action)


@contextlib.contextmanager
def whole() -> Iterator[None]:
    """Quick work that the end of the process waits for."""
    with _whole:
        yield


@contextlib.contextmanager
def running(process: BaseProcess) -> Iterator[None]:
    """Start a process, which is gone when the block ends, or this process does.

    It never hears of signals itself, not even while Python starts in it, where Ctrl-C would end in
    a traceback. Its arguments should be small: until they are read, the end waits.
    """
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # else started with the process, and that unblocks signals
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
    """In a process of `running`: end with the one that started it, even if that is killed."""
    from multiprocessing import connection, parent_process

    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, name="parent", daemon=True).start()


# ------------------------------------------------------------------------------ Last words


def _write(text: str) -> None:
    """Past Python's own buffers, which the main thread may hold; never waiting for the reader."""
    with contextlib.suppress(OSError, ValueError):
        if select.select([], [2], [], 0.5)[1]:
            os.write(2, text.encode(errors="replace"))


def _past_bar() -> str:
    """A progress bar may stand on this line, with the cursor hidden."""
    return "\x1b[?25h\n" if os.isatty(2) else ""
