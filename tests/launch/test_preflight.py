"""Processes that are missing, started twice or started differently. Real processes."""

from __future__ import annotations

import dataclasses
import socket

import pytest
from launch.ports import finish, free_port
from launch.programs import start

from chopjax.errors import UserError
from chopjax.launch.preflight import Processes, check_port, missing


@pytest.fixture
def first() -> Processes:
    return Processes(f"127.0.0.1:{free_port()}", 3, 0, "flags", "start-all", ("h0", "h1", "h2"))


@pytest.mark.parametrize("count", [2, 3])
def test_processes_see_each_other(count: int):
    for code, out, err in finish(start(["pass"] * count)):
        assert code == 0, err
        assert f"in {list(range(count))}\n" in out


def test_a_missing_process_ends_the_others_with_advice():
    ended = finish(start(["pass"] * 2, count=3, indices=[0, 2], seconds=4))
    for code, _, err in ended:
        assert code == 2, err
        assert "error: not all of the 3 processes started within 4 s" in err
        assert err.rstrip().endswith("--num-processes 3 --process-id 2")
        assert "Traceback" not in err
        assert "stack trace" not in err
    assert "this is process 0" in ended[0][2]


def test_process_0_is_missing():
    ((code, _, err),) = finish(start(["pass"], count=2, indices=[1], seconds=1))
    assert code == 2
    assert "process 0 does not answer at 127.0.0.1:" in err
    assert "refused" in err


def test_what_each_process_can_tell(first: Processes):
    second = dataclasses.replace(first, index=1)
    assert "process 0 (h0) does not answer" in missing(second, 3)
    with socket.create_server(("127.0.0.1", first.port)):
        assert "reaches process 0 (h0), so another one is missing" in missing(second, 3)
    assert missing(first, 3).endswith("(flags). This starts all of them:\n  start-all")


def test_differences_end_all_in_the_same_words():
    given: list[dict[str, object]] = [{"batch": 8, "seed": 1}, {"batch": 8, "seed": 2}, {"seed": 1}]
    words = set()
    for code, _, err in finish(start(["pass"] * 3, given)):
        assert code == 2, err
        words.add(err[err.index("own error: ") :])
    (text,) = words
    assert "process 1 on " in text
    assert "was not started as process 0 on " in text
    assert "  seed: 2, process 0 has 1\n" in text
    assert "batch: " not in text  # process 2's, once this is mended


def test_port_in_use(first: Processes):
    with (
        socket.create_server(("", first.port)),
        pytest.raises(UserError, match=f"cannot listen on port {first.port} of this host"),
    ):
        check_port(first.port)
