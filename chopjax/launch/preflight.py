"""Starting jax.distributed, so that a missing or different process is an error and not a hang.

jax waits until every process has connected to process 0, and aborts with a C++ stack trace when
that takes too long; here a timer ends the wait a little earlier, with advice. It cannot say which
process is missing, because jax's service answers nobody before all are there, but every process can
tell whether process 0 is. Then all processes compare what they were started with.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import socket
import threading
from collections.abc import Mapping
from typing import Any

import jax

from chopjax.errors import UserError, listing, readable
from chopjax.progress import say

START_MARGIN_SECONDS = 60  # by which jax's own time-out, an abort, comes after ours
HEARTBEAT_SECONDS = 60  # of silence, after which jax aborts all others (its own choice is 100)
PROBE_SECONDS = 5.0  # for process 0 to accept a connection
COMPARE_SECONDS = 300  # all processes are there: none of this waits for a person


@dataclasses.dataclass(frozen=True)
class Processes:
    """The processes of one run, as one of them sees them."""

    coordinator: str  # HOST:PORT of process 0
    count: int
    index: int  # which of them this is
    how: str  # where this was read, for messages: "flags", "SLURM", …
    command: str  # starts all of them; may have several lines
    hosts: tuple[str, ...] = ()  # by index, where known

    @property
    def host(self) -> str:
        return self.coordinator.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        return int(self.coordinator.rpartition(":")[2])

    def name(self, index: int) -> str:
        """ "3", or "3 (its host)"."""
        return f"{index} ({self.hosts[index]})" if index < len(self.hosts) else str(index)


def start(processes: Processes, timeout_seconds: float) -> None:
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
        initialization_timeout=math.ceil(timeout_seconds) + START_MARGIN_SECONDS,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    )
    timer.cancel()


def client() -> Any:
    """jax's client of the coordination service: a key-value store and barriers for all processes,
    which has no public name (Orbax takes it from here as well)."""
    from jax._src.distributed import global_state

    return global_state.client


def compare(processes: Processes, started_with: Mapping[str, object]) -> None:
    """Raise UserError, in every process and in the same words, unless all were started alike.

    started_with: name → value of what must be the same in every process.
    """
    store, timeout = client(), COMPARE_SECONDS * 1000
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
    if found := store.key_value_dir_get("chopjax/different"):
        raise UserError(
            f"{min(found)[1]}\nAll processes need the same software and the same command, as this "
            f"starts them ({processes.how}):\n{_indented(command)}"
        )


def _give_up(processes: Processes, seconds: float) -> None:
    say(readable(f"error: {missing(processes, seconds)}"))
    os._exit(2)


def missing(processes: Processes, seconds: float) -> str:
    """What to say when not all processes have connected in time."""
    if processes.index == 0:
        who = f"this is process {processes.name(0)}, which listens on port {processes.port}"
    else:
        try:
            address = (processes.host, processes.port)
            socket.create_connection(address, timeout=PROBE_SECONDS).close()
            who = f"this one reaches process {processes.name(0)}, so another one is missing"
        except OSError as error:
            who = (
                f"process {processes.name(0)} does not answer at {processes.coordinator} "
                f"({error.strerror or error}): it was not started, has given up already, or a "
                "firewall keeps that port closed"
            )
    return (
        f"not all of the {processes.count} processes started within {seconds:.0f} s: {who}.\n"
        "Every process must run, each with a number of its own, started at about the same time "
        f"({processes.how}). This starts all of them:\n{_indented(processes.command)}"
    )


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


def _indented(text: str) -> str:
    return "\n".join("  " + line for line in text.splitlines())
