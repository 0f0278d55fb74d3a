"""The processes of one run: they start together, alike, and none outlives the failure of another.

jax.distributed connects them, and when the heartbeat of one stops it aborts the others with the
number of that one. What it leaves to us:

- It aborts with a C++ stack trace when a process does not appear. A timer ends the wait a little
  earlier, with advice.
- It does not know what the processes were started with. They compare that here.
- A process whose Python raised keeps its heartbeat and waits five minutes at its exit for the
  others, which wait for it in a collective. Here it exits with its own error and without waiting.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import math
import os
import platform
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from textwrap import indent
from typing import Any, NoReturn

import jax
from jax.errors import JaxRuntimeError

from chopjax import __version__, interrupts
from chopjax.errors import UserError, listing, readable
from chopjax.launch.processes import Launch, Processes, find
from chopjax.progress import say

# EX_TEMPFAIL of sysexits.h: stopped from outside, start me again. tpu_scripts/ wait for it.
EXIT_PREEMPTED = 75
EXIT_PEER_LOST = 69  # EX_UNAVAILABLE: another process is gone, and its log says why

SOFTWARE = {
    "chopjax": __version__,
    "jax": jax.__version__,
    "Python": platform.python_version(),
}
WAIT_SECONDS = 24 * 3600  # a process that is lost ends the wait sooner
HEARTBEAT_SECONDS = 60  # of silence, after which jax aborts the others (its default is 100)
ABORT_MARGIN_SECONDS = 60  # by which jax's own time-out for the start comes after ours
COMPARE_SECONDS = 300  # all processes are there: none of this waits for a person
LAST_SECONDS = 10  # for which process 0, where jax's service runs, waits for others that fail
EXITING_SECONDS = 1  # and then until these, which have said so, have exited
EXIT_SECONDS = 20  # in which a process that failed exits, whatever threads it still has
# What collectives on CPUs and GPUs raise when the process at the other end is gone.
LOST_CONNECTION = re.compile(
    r"gloo.*(connection (reset|closed)|broken pipe)|remote process exited", re.I | re.S
)
_barriers = itertools.count()  # all processes count alike, which makes the names unique


@contextlib.contextmanager
def joined(
    launch: Launch,
    started_with: Mapping[str, object] | None = None,
    advice: Callable[[], str] = lambda: "",
) -> Iterator[Processes | None]:
    """Join the other processes, and end with them; must begin before anything touches a device.

    started_with: what must be the same in every process, beside the software. advice: what to say,
    before how to start again, when another process is lost. Yields who they are, or None for a
    single process. When not all of them appear within the time-out, every process that did start
    exits with code 2 and says so. Raises UserError, in every process, when they were not started
    alike. While the block runs, the failure of one ends all.
    """
    processes = find(launch, os.environ)
    if processes is None or processes.count == 1:
        yield None
        return
    _start(processes, launch.timeout_seconds)
    _compare(processes, {**SOFTWARE, **(started_with or {})})
    if processes.index == 0:
        say(f"{processes.count} processes ({processes.how}), all there")
    again = f"Unless a watcher of tpu_scripts/ does, start all again:\n{processes.command}"
    with _ending_together(processes, lambda: "\n".join(filter(None, [advice(), again]))):
        yield processes


def wait_for_all(what: str) -> None:
    """Returns when every process is here, however long that takes; `what` names the place.

    By jax's coordination service and not by a collective, which on CPUs fails after 30 s.
    """
    if jax.process_count() > 1:
        name = f"chopjax/{next(_barriers)} {what}"
        _client().wait_at_barrier(name, WAIT_SECONDS * 1000)


def _client() -> Any:
    """jax's client of the coordination service: a key-value store and barriers for all processes,
    which has no public name (Orbax takes it from here as well)."""
    from jax._src.distributed import global_state

    return global_state.client


def _start(processes: Processes, timeout_seconds: float) -> None:
    """Start jax.distributed; returns when every process has.

    Where that takes too long, the process ends with a message and exit code 2: the main thread is
    in C++ and cannot be interrupted. Raises UserError when process 0's port is taken.
    """
    if processes.index == 0:
        check_port(processes.port)
        others = processes.count - 1
        say(f"waiting for {others} more process{'es' * (others > 1)} ({processes.how})")
    timer = threading.Timer(timeout_seconds, _give_up, (processes, timeout_seconds))
    timer.daemon = True
    timer.start()
    jax.distributed.initialize(
        coordinator_address=processes.coordinator,
        num_processes=processes.count,
        process_id=processes.index,
        initialization_timeout=math.ceil(timeout_seconds) + ABORT_MARGIN_SECONDS,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    )
    timer.cancel()


def check_port(port: int) -> None:
    """Raise UserError when this host's port is taken: jax would only say that gRPC failed."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=both).close()
    except OSError as error:
        raise UserError(
            f"cannot listen on port {port} of this host: {error.strerror or error}. Another run "
            "may use it; end that, or choose another port (--coordinator HOST:PORT)"
        ) from error


def _give_up(processes: Processes, seconds: float) -> None:
    text = (
        f"error: not all of the {processes.count} processes started within {seconds:.0f} s, or "
        f"they do not reach process 0 at {processes.coordinator}.\nEvery process must run, each "
        f"with a number of its own, started at about the same time ({processes.how}), and no "
        f"firewall may close that port. This starts all of them:\n{indent(processes.command, '  ')}"
    )
    say(readable(text))
    os._exit(2)


def _compare(processes: Processes, started_with: Mapping[str, object]) -> None:
    """Raise UserError, in every process and in the same words, unless all were started alike.

    started_with: name → value of what must be the same in every process.
    """
    store, timeout = _client(), COMPARE_SECONDS * 1000
    values = {"--num-processes": processes.count, **started_with}
    mine = {name: str(value) for name, value in values.items()}
    host = socket.gethostname()
    if processes.index == 0:
        store.key_value_set("chopjax/started", json.dumps([host, processes.command, mine]))
    started = store.blocking_key_value_get("chopjax/started", timeout)
    first_host, command, first = json.loads(started)
    if mine != first:
        differences = [
            f"{name}: {mine.get(name, 'not given')}, process 0 has {first.get(name, 'not given')}"
            for name in sorted(first.keys() | mine.keys())
            if first.get(name) != mine.get(name)
        ]
        who = f"process {processes.index} on {host} was not started as process 0 on {first_host}"
        text = f"{who}:\n{listing(differences)}"
        store.key_value_set(f"chopjax/different/{processes.index}", text)
    store.wait_at_barrier("chopjax/compared", timeout)
    if reports := store.key_value_dir_get("chopjax/different"):
        raise UserError(
            f"{min(reports)[1]}\nAll processes need the same software and the same command, as "
            f"this starts them ({processes.how}):\n{indent(command, '  ')}"
        )


@contextlib.contextmanager
def _ending_together(processes: Processes, advice: Callable[[], str]) -> Iterator[None]:
    """An error that leaves the block ends this process without waiting for the others.

    Its exit code stays what the caller makes of the error. The others lose their connection to it,
    which ends them with EXIT_PEER_LOST, or jax aborts them within HEARTBEAT_SECONDS. advice: what
    to say then: what is saved, what to do.
    """
    with interrupts.at_end(lambda: _wait_for_others(processes)):
        try:
            yield
        except BaseException as error:
            if isinstance(error, Exception) and LOST_CONNECTION.search(str(error)):
                say(
                    "\nerror: the connection to another process is lost: it failed, and its own "
                    "log says why, or it was killed (perhaps it ran out of memory)\n" + advice()
                )
                _exit(processes, EXIT_PEER_LOST)
            if isinstance(error, KeyboardInterrupt):
                _wait_for_others(processes)  # what follows a Ctrl-C may skip `_exit`
            code = _code_of(error)
            if code not in (0, EXIT_PREEMPTED):  # with these, all end together
                atexit.register(_exit, processes, code)  # runs before jax's, registered earlier
                timer = threading.Timer(EXIT_SECONDS, _exit, (processes, code))
                timer.daemon = True
                timer.start()
            raise


def _code_of(error: BaseException) -> int:
    """The exit code that the command line makes of it."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 2 if isinstance(error, UserError) else 1


def _exit(processes: Processes, code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    _wait_for_others(processes)
    os._exit(code)


def _wait_for_others(processes: Processes) -> None:
    """Process 0 goes last: jax aborts the others when its service is gone, and those that fail over
    the same mistake would not get to say so."""
    store, deadline = _client(), time.monotonic() + LAST_SECONDS
    with contextlib.suppress(JaxRuntimeError):  # another one does not fail
        if processes.index:
            store.key_value_set(f"chopjax/failed/{processes.index}", "", allow_overwrite=True)
        for other in range(1, 0 if processes.index else processes.count):
            left = max(1, int(1000 * (deadline - time.monotonic())))
            store.blocking_key_value_get(f"chopjax/failed/{other}", left)
        if not processes.index:
            time.sleep(EXITING_SECONDS)
