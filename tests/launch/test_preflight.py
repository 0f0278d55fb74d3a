"""The roll call, with threads as processes: strangers, contradictions, those who come and go."""

import dataclasses
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from launch.ports import free_port

from chopjax.errors import UserError
from chopjax.launch.preflight import Processes, roll_call


@pytest.fixture
def first() -> Processes:
    return Processes(f"127.0.0.1:{free_port()}", 3, 0, "flags", "start-all", ("h0", "h1", "h2"))


def outcomes(*roles: tuple[Processes, str], seconds: float = 20) -> list[str | None]:
    """The error of each, or None."""

    def take_part(role: tuple[Processes, str]) -> str | None:
        try:
            roll_call(*role, seconds)
        except UserError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(len(roles)) as pool:
        return list(pool.map(take_part, roles))


def at(first: Processes, index: int, **changes) -> Processes:
    return dataclasses.replace(first, index=index, **changes)


def test_all_there(first: Processes):
    assert outcomes(*((at(first, index), "v1") for index in (2, 0, 1))) == [None] * 3


def test_one_process_needs_no_call():
    roll_call(Processes("nowhere.invalid:1", 1, 0, "flags", ""), "v1", 0.1)


def test_missing_is_named_in_every_process(first: Processes):
    errors = outcomes((first, "v1"), (at(first, 2), "v1"), seconds=2)
    assert errors[0] == errors[1]
    assert "1 of 3 processes did not start within 2 s: process 1 (h1)" in errors[0]
    assert "These did: 0 (" in errors[0]
    assert "start-all" in errors[0]


def test_process_0_missing(first: Processes):
    (error,) = outcomes((at(first, 1), "v1"), seconds=1)
    assert "process 0 (h0) did not answer within 1 s" in error
    assert "start-all" in error


def test_contradictions(first: Processes):
    twice = outcomes((first, "v1"), (at(first, 1), "v1"), (at(first, 1), "v1"))
    assert all("process 1 was started twice" in error for error in twice)
    other_count = outcomes((first, "v1"), (at(first, 1, count=4), "v1"))
    assert all("expects 4 processes, process 0 expects 3" in error for error in other_count)
    versions = outcomes((first, "v1"), (at(first, 1), "v2"))
    assert all("runs v2" in error and "runs v1" in error for error in versions)


def test_strangers_are_ignored_and_who_left_is_missing(first: Processes):
    address = ("127.0.0.1", first.port + 1)

    def disturb() -> None:
        deadline = time.monotonic() + 10
        for line in (b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b'{"index": 1}\n', b"x" * 9999):
            while time.monotonic() < deadline:
                try:
                    stranger = socket.create_connection(address)
                    break
                except OSError:
                    time.sleep(0.02)
            stranger.sendall(line)
            stranger.close()
        silent.append(socket.create_connection(address))
        # A process that says hello and dies.
        with socket.create_connection(address) as gone:
            gone.sendall(b'{"index": 1, "count": 3, "host": "h1", "software": "v1"}\n')

    silent: list[socket.socket] = []
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(outcomes, (first, "v1"), seconds=3)]
        disturb()
        time.sleep(0.5)
        calls.append(pool.submit(outcomes, (at(first, 2), "v1"), seconds=3))
        errors = [call.result()[0] for call in calls]
    silent[0].close()
    assert "process 1 (h1)" in errors[0]
    assert errors[1] == errors[0]


def test_a_late_process_0_finds_the_others_waiting(first: Processes):
    with ThreadPoolExecutor(2) as pool:
        early = [pool.submit(roll_call, at(first, index), "v1", 20) for index in (1, 2)]
        time.sleep(1)
        roll_call(first, "v1", 20)
        assert [len(future.result()) for future in early] == [1, 1]


def test_port_in_use(first: Processes):
    with (
        socket.create_server(("", first.port + 1)),
        pytest.raises(UserError, match=f"port {first.port + 1} of this host"),
    ):
        roll_call(first, "v1", 1)
