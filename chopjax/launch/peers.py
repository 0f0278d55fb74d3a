"""Noticing that another process of the run has ended, so that the others end with its name.

Without this they would wait in a collective until jax's heartbeat aborts them, minutes later and
with a C++ stack trace. The connections of the roll call stay open: process 0 holds one to each of
the others. The kernel closes those of a process that ends, however it ends; probes find a machine
that is gone. Who ends in order says goodbye before. A thread listens, for the main one may be held
up in a collective; it ends the process by itself. No jax here.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import errno
import json
import os
import select
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

from chopjax.errors import UserError
from chopjax.progress import say

# EX_TEMPFAIL of sysexits.h: stopped from outside, start me again. tpu_scripts/ wait for it.
EXIT_PREEMPTED = 75
# EX_UNAVAILABLE: another process died. Start all again, but look at why.
EXIT_PEER_LOST = 69

PROBE_AFTER, PROBE_EVERY, PROBES = 20, 10, 6  # seconds of silence: a machine is gone after 80
PATIENCE_SECONDS = 10.0  # for ending by oneself, after another process ended with an error
NOTICE_SECONDS = 2.0  # in which a loss is noticed, after a collective has failed by it
LEAVE_SECONDS = 20.0  # for all that an error has left to do
_MACHINE_GONE = {errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH}


@dataclasses.dataclass(frozen=True)
class Line:
    """An open connection to another process."""

    index: int
    host: str
    connection: socket.socket

    def __str__(self) -> str:
        return f"process {self.index} on {self.host}"


@dataclasses.dataclass(frozen=True)
class _End:
    """Why all must end, and how."""

    text: str
    code: int
    patience: float  # seconds


@contextlib.contextmanager
def watched(lines: Sequence[Line], last_words: Callable[[], str]) -> Iterator[None]:
    """While the block runs, end this process when another one has ended; tell them how it ends.

    lines: of process 0 to all others, of the others to process 0. last_words: what to say after
    who is gone: what is saved, what to do.
    """
    watch = _Watch(lines, last_words)
    try:
        yield
    except BaseException as error:
        watch.fail(error)
        raise
    watch.say_goodbye(0, "")


class _Watch:
    def __init__(self, lines: Sequence[Line], last_words: Callable[[], str]):
        self._lines, self._last_words = lines, last_words
        self._leaving = threading.Event()  # this process ends by itself: no more to notice
        self._alone = threading.Event()  # all lines are closed
        self._bad_news = threading.Event()
        self._end: _End | None = None
        for line in lines:
            _probe(line.connection)
        threading.Thread(target=self._listen, name="peers", daemon=True).start()

    def say_goodbye(self, code: int, why: str) -> None:
        self._send({"goodbye": code, "why": why}, self._lines)

    def fail(self, error: BaseException) -> None:
        """Tell the others, and see to it that this process ends without waiting for them."""
        # What a collective throws where a process is lost is not the reason, which is on its way.
        expected = isinstance(error, UserError)
        if isinstance(error, Exception) and self._bad_news.wait(NOTICE_SECONDS):
            assert self._end is not None
            if not self._end.patience or not expected:
                threading.Event().wait()  # the other thread ends this process
        self._leaving.set()
        code = _code_of(error)
        why = "Ctrl-C" if isinstance(error, KeyboardInterrupt) else str(error)
        self.say_goodbye(code, (why or type(error).__name__).splitlines()[0])
        if code == EXIT_PREEMPTED:
            return
        if any(line.index for line in self._lines):
            # With process 0 jax's service ends, which aborts those who are still there.
            self._alone.wait(PATIENCE_SECONDS + NOTICE_SECONDS)
        # jax would wait minutes for the others at the end, and so may threads of Orbax.
        atexit.register(_exit, code)  # runs before jax's, which was registered earlier
        timer = threading.Timer(LEAVE_SECONDS, _exit, (code,))
        timer.daemon = True
        timer.start()

    def _listen(self) -> None:
        lines = {line.connection: line for line in self._lines}
        in_order = set()
        while lines:
            for connection in select.select(list(lines), [], [])[0]:
                line = lines[connection]
                try:
                    message = json.loads(_read_line(connection) or b"null")
                    gone = "its process was killed, as for want of memory, or crashed"
                    code = EXIT_PEER_LOST
                except (OSError, ValueError) as error:
                    message, code, gone = None, EXIT_PEER_LOST, f"its connection broke ({error})"
                    if isinstance(error, OSError) and error.errno in _MACHINE_GONE:
                        code, gone = EXIT_PREEMPTED, "its machine does not answer any more"
                if message is None:
                    del lines[connection]
                    if line not in in_order:
                        self._act(_End(f"{line} was lost: {gone}", code, 0), line)
                elif "goodbye" in message:
                    in_order.add(line)
                    if message["goodbye"] not in (0, EXIT_PREEMPTED):
                        text = f"{line} has stopped: {message['why']}"
                        self._act(_End(text, message["goodbye"], PATIENCE_SECONDS), line)
                else:
                    self._act(_End(**message), line)
        self._alone.set()

    def _act(self, end: _End, origin: Line) -> None:
        """Pass the news on, and end this process unless it does so by itself in time."""
        if self._leaving.is_set():
            return
        self._end = end
        self._bad_news.set()
        others = [line for line in self._lines if line is not origin]
        self._send(dataclasses.asdict(end), others)
        if self._leaving.wait(end.patience):
            return
        say(f"\nerror: {end.text}\n{self._last_words()}")
        for line in others:  # as above: process 0 ends last
            with contextlib.suppress(OSError):
                line.connection.settimeout(NOTICE_SECONDS)
                line.connection.recv(1)
        _exit(end.code)

    def _send(self, message: dict[str, object], lines: Sequence[Line]) -> None:
        for line in lines:
            with contextlib.suppress(OSError):  # gone as well
                line.connection.sendall(json.dumps(message).encode() + b"\n")


def _read_line(connection: socket.socket) -> bytes:
    with connection.makefile("rb", buffering=0) as file:
        return file.readline()


def _probe(connection: socket.socket) -> None:
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):  # elsewhere the system's own, slower ones
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_AFTER)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_EVERY)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)


def _code_of(error: BaseException) -> int:
    """The exit code that the command line makes of it."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 2 if isinstance(error, UserError) else 1


def _exit(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
