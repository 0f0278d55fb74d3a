"""Processes that are missing, started twice or started differently. Real processes."""

from __future__ import annotations

import socket

import pytest
from launch.ports import finish
from launch.programs import start

from chopjax.errors import UserError
from chopjax.launch.distributed import check_port


@pytest.mark.parametrize("count", [2, 3])
def test_processes_see_each_other(count: int):
    for code, out, err in finish(start(["pass"] * count)):
        assert code == 0, err
        assert f"in {list(range(count))}\n" in out


@pytest.mark.parametrize("indices", [[0, 2], [1, 2]])
def test_a_missing_process_ends_the_others_with_advice(indices: list[int]):
    for code, _, err in finish(start(["pass"] * 2, count=3, indices=indices, seconds=4)):
        assert code == 2, err
        assert "error: not all of the 3 processes started within 4 s" in err
        assert "do not reach process 0 at 127.0.0.1:" in err
        assert err.rstrip().endswith("--num-processes 3 --process-id 2")
        assert "Traceback" not in err
        assert "stack trace" not in err


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


def test_port_in_use():
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen on port {port} of this host"):
            check_port(port)
