"""A roll call before jax.distributed starts, so that a missing process is an error and not a hang.

Process 0 listens on the port after the coordinator's. Every other process connects and says one
line of JSON: who it is, how many it expects, what software it runs. When all are there, process 0
answers everyone with "go", and the connections stay open (peers.py); when the time is up or
something does not fit, it answers with the error, so that every process ends with the same words.
No jax here: nothing may touch a device before that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import select
import socket
import time

from chopjax.errors import UserError
from chopjax.launch.peers import Line
from chopjax.progress import say

HELLO_BYTES = 4096  # a longer hello is not from one of us
RETRY_SECONDS = 0.5
SAY_SECONDS = 10.0  # who is still missing, at most this often


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


@dataclasses.dataclass(frozen=True)
class _Hello:
    """What a process says of itself."""

    index: int
    count: int
    host: str
    software: str


@dataclasses.dataclass
class _Caller:
    """A connection to process 0, and the hello once it was heard."""

    connection: socket.socket
    heard: bytes = b""
    hello: _Hello | None = None


def roll_call(processes: Processes, software: str, timeout_seconds: float) -> list[Line]:
    """Returns when every process is there. Raises UserError in every one of them otherwise.

    `software` must be the same everywhere, for example the versions of jax and chopjax. What is
    returned are open connections: process 0's to all others, that of each other one to process 0.
    """
    if processes.count == 1:
        return []
    if processes.index == 0:
        return _gather(processes, software, timeout_seconds)
    return [_report(processes, software, timeout_seconds)]


def _gather(processes: Processes, software: str, timeout_seconds: float) -> list[Line]:
    deadline = time.monotonic() + timeout_seconds
    last_word = time.monotonic()
    callers: list[_Caller] = []
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(listen(processes.port + 1))
        while True:
            present = {0: socket.gethostname()}
            present |= {c.hello.index: c.hello.host for c in callers if c.hello}
            error = None
            if len(present) == processes.count:
                break
            if time.monotonic() > deadline:
                error = _missing(processes, present, timeout_seconds)
            elif time.monotonic() > last_word + SAY_SECONDS:
                last_word = time.monotonic()
                absent = [i for i in range(processes.count) if i not in present]
                left = deadline - last_word
                say(f"waiting for {_listed(processes, absent)} for another {left:.0f} s")
            if error is None:
                waiting = [server, *(caller.connection for caller in callers)]
                ready, _, _ = select.select(waiting, [], [], RETRY_SECONDS)
                if server in ready:
                    connection, _ = server.accept()
                    callers.append(_Caller(stack.enter_context(connection)))
                for caller in list(callers):
                    if caller.connection in ready and not _listen_to(caller):
                        callers.remove(caller)  # gone again, or a stranger
                        caller.connection.close()
                error = _contradiction(processes, software, callers)
            if error is not None:
                _answer(callers, {"error": error})
                raise UserError(error)
        _answer(callers, {"go": True})
        stack.pop_all()
    for stranger in (server, *(c.connection for c in callers if not c.hello)):
        stranger.close()
    return [Line(c.hello.index, c.hello.host, c.connection) for c in callers if c.hello]


def _listen_to(caller: _Caller) -> bool:
    """Read what is there; False when the connection ended or did not speak our language."""
    try:
        piece = caller.connection.recv(HELLO_BYTES)
    except OSError:
        return False
    caller.heard += piece
    if caller.hello is None and caller.heard.endswith(b"\n"):
        try:
            said = json.loads(caller.heard)
            caller.hello = _Hello(
                int(said["index"]), int(said["count"]), str(said["host"]), str(said["software"])
            )
        except (ValueError, KeyError, TypeError):
            return False
    return bool(piece) and len(caller.heard) <= HELLO_BYTES


def _contradiction(processes: Processes, software: str, callers: list[_Caller]) -> str | None:
    """What does not fit among those who have spoken."""
    seen = {0: socket.gethostname()}
    for hello in (caller.hello for caller in callers if caller.hello):
        who = f"process {hello.index} on {hello.host}"
        if hello.count != processes.count or not 0 <= hello.index < processes.count:
            return (
                f"{who} expects {hello.count} processes, process 0 expects {processes.count}; "
                f"start all of them alike:\n{_indented(processes.command)}"
            )
        if hello.index in seen:
            return (
                f"process {hello.index} was started twice, on {seen[hello.index]} and on "
                f"{hello.host}; give every process a number of its own, or end the older run"
            )
        if hello.software != software:
            return (
                f"{who} runs {hello.software}, process 0 on {seen[0]} runs {software}; "
                "install the same everywhere"
            )
        seen[hello.index] = hello.host
    return None


def _missing(processes: Processes, present: dict[int, str], seconds: float) -> str:
    absent = [index for index in range(processes.count) if index not in present]
    here = ", ".join(f"{index} ({host})" for index, host in sorted(present.items()))
    return (
        f"{len(absent)} of {processes.count} processes did not start within {seconds:.0f} s: "
        f"{_listed(processes, absent)}. These did: {here}.\n"
        f"Every process must run, started at about the same time ({processes.how}). "
        f"This starts all of them:\n{_indented(processes.command)}"
    )


def _listed(processes: Processes, indices: list[int]) -> str:
    names = [processes.name(index) for index in indices[:20]]
    more = f" and {len(indices) - 20} more" if len(indices) > 20 else ""
    return ("process " if len(indices) == 1 else "processes ") + ", ".join(names) + more


def _indented(text: str) -> str:
    return "\n".join("  " + line for line in text.splitlines())


def _answer(callers: list[_Caller], message: dict[str, object]) -> None:
    for caller in callers:
        # One who has gone cannot be told; jax.distributed's own time-out finds that out.
        with contextlib.suppress(OSError):
            caller.connection.sendall(json.dumps(message).encode() + b"\n")


def _report(processes: Processes, software: str, timeout_seconds: float) -> Line:
    hello = _Hello(processes.index, processes.count, socket.gethostname(), software)
    spoken = json.dumps(dataclasses.asdict(hello)).encode() + b"\n"
    deadline = time.monotonic() + timeout_seconds
    problem = "not tried"
    while time.monotonic() < deadline:
        with contextlib.ExitStack() as stack:
            try:
                address = (processes.host, processes.port + 1)
                connection = stack.enter_context(socket.create_connection(address, timeout=5))
                connection.sendall(spoken)
                # Process 0 may have started later than this one; it answers by its own clock.
                connection.settimeout(timeout_seconds + SAY_SECONDS)
                with connection.makefile("rb", buffering=0) as file:  # what follows is not for us
                    answer = file.readline()
            except OSError as error:
                problem = str(error)
                time.sleep(RETRY_SECONDS)
                continue
            if not answer:  # process 0 went away; perhaps it is being started again
                problem = "it ended the connection"
                time.sleep(RETRY_SECONDS)
                continue
            message = json.loads(answer)
            if "error" in message:
                raise UserError(message["error"])
            stack.pop_all()
            return Line(0, processes.host, connection)
    raise UserError(
        f"process {processes.name(0)} did not answer within {timeout_seconds:.0f} s on port "
        f"{processes.port + 1} of {processes.host} ({problem}). Either it was not started, or a "
        f"firewall keeps ports {processes.port} and {processes.port + 1} closed. "
        f"This starts all processes ({processes.how}):\n{_indented(processes.command)}"
    )


def listen(port: int) -> socket.socket:
    """A listening socket on every interface. Raises UserError when the port is taken."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise UserError(
            f"cannot listen on port {port} of this host: {error.strerror or error}. Another run "
            "may use it; end that, or choose another port (--coordinator HOST:PORT)"
        ) from error
