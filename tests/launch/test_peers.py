"""A process that ends takes the others along, who say which it was. Real processes, without jax."""

from __future__ import annotations

import errno
import signal
import socket
import subprocess
import sys
import textwrap
import threading

import pytest
from launch.ports import free_port

from chopjax.launch import peers

PROGRAM = textwrap.dedent("""
    import sys, time
    from chopjax.errors import UserError
    from chopjax.launch import peers
    from chopjax.launch.preflight import Processes, roll_call

    peers.PATIENCE_SECONDS, peers.NOTICE_SECONDS = 1, 0.5
    port, index, action = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    lines = roll_call(Processes(f"127.0.0.1:{port}", 3, index, "flags", ""), "v1", 20)
    try:
        with peers.watched(lines, lambda: "checkpoint 7 is good"):
            print("in", flush=True)
            if action == "wait":
                time.sleep(60)
            elif action == "error":
                raise UserError("no room")
            elif action == "crash":
                raise ValueError("a defect")
            elif action == "preempted":
                raise SystemExit(75)
            else:
                time.sleep(float(action))
    except UserError as error:
        print(f"own error: {error}", file=sys.stderr)
        sys.exit(2)
""")


def ends(*actions: str, kill: int | None = None) -> list[tuple[int, str]]:
    """Exit code and stderr of three processes with these things to do."""
    port = str(free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, port, str(index), action],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index, action in enumerate(actions)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
    if kill is not None:
        processes[kill].send_signal(signal.SIGKILL)
    results = []
    for process in processes:
        _, err = process.communicate(timeout=40)
        results.append((process.returncode, err))
    return results


@pytest.mark.parametrize("lost", [0, 1])
def test_a_killed_process_ends_the_others_by_name(lost: int):
    results = ends("wait", "wait", "wait", kill=lost)
    assert results.pop(lost)[0] == -signal.SIGKILL
    for code, err in results:
        assert code == peers.EXIT_PEER_LOST
        assert f"error: process {lost} on " in err
        assert "was lost: its process was killed" in err
        assert "checkpoint 7 is good" in err


@pytest.mark.parametrize(
    ("action", "code", "why"), [("error", 2, "no room"), ("crash", 1, "a defect")]
)
@pytest.mark.parametrize("failing", [0, 2])
def test_an_error_of_one_is_told_by_all(failing: int, action: str, code: int, why: str):
    actions = ["wait", "wait", "wait"]
    actions[failing] = action
    results = ends(*actions)
    assert [c for c, _ in results] == [code] * 3
    for index, (_, err) in enumerate(results):
        assert why in err
        assert (f"process {failing} on " in err) == (index != failing)


def test_the_same_error_everywhere_is_each_ones_own():
    for code, err in ends("error", "error", "error"):
        assert code == 2
        assert err == "own error: no room\n"


def test_who_ends_in_order_leaves_the_others_alone():
    assert ends("1", "0", "preempted") == [(0, ""), (0, ""), (75, "")]


def test_a_machine_that_does_not_answer_counts_as_preempted(monkeypatch, capsys):
    ended, codes = threading.Event(), []

    def silence(connection: socket.socket) -> bytes:
        raise OSError(errno.ETIMEDOUT, "Connection timed out")

    def note(code: int) -> None:
        codes.append(code)
        ended.set()

    monkeypatch.setattr(peers, "_read_line", silence)
    monkeypatch.setattr(peers, "_exit", note)
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
        with ours, theirs, peers.watched([peers.Line(4, "host4", ours)], lambda: ""):
            theirs.sendall(b"x")
            assert ended.wait(10)
    assert codes == [peers.EXIT_PREEMPTED]
    assert "process 4 on host4 was lost: its machine does not answer" in capsys.readouterr().err
