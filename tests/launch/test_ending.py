"""A process that fails ends with its own error, and the others do not outlive it. Real ones."""

from __future__ import annotations

import signal
import subprocess

import pytest
from launch.ports import finish
from launch.programs import start, wait_until_in

from chopjax.launch.distributed import EXIT_PEER_LOST, EXIT_PREEMPTED

COMPUTING, SLEEPING = "while True: gather(1)", "time.sleep(10**6)"
HEARTBEAT = 20


def ends(processes: list[subprocess.Popen]) -> list[tuple[int, str]]:
    return [(code, err) for code, _, err in finish(processes)]


def assert_ended_by_jax(code: int, err: str):
    assert code == -signal.SIGABRT, err
    assert "distributed service" in err, err


def assert_lost(code: int, err: str):
    assert code == EXIT_PEER_LOST, err
    assert err.count("error: the connection to another process is lost") == 1, err
    assert "checkpoint 7 is good" in err
    assert "--process-id 1" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("failing", "action", "code", "why"),
    [
        (0, "raise UserError('no room')", 2, "own error: no room"),
        (1, "raise ValueError('a defect')", 1, "ValueError: a defect"),
    ],
)
def test_a_process_that_raises_ends_the_others(failing: int, action: str, code: int, why: str):
    actions = [SLEEPING] * 2
    actions[failing] = action
    results = ends(start(actions, heartbeat=HEARTBEAT))
    assert_ended_by_jax(*results.pop(1 - failing))
    assert results[0][0] == code
    assert why in results[0][1]
    assert "stack trace" not in results[0][1]


def test_a_process_that_raises_ends_those_that_wait_at_a_barrier():
    results = ends(start(["wait_for_all('a save')", "raise ValueError"], heartbeat=HEARTBEAT))
    assert [code != 0 for code, _ in results] == [True, True], results


def test_a_process_that_raises_ends_those_that_compute_with_it():
    lost, (code, err) = ends(start([COMPUTING, "raise ValueError('a defect')"]))
    assert_lost(*lost)
    assert code == 1
    assert "ValueError: a defect" in err


def test_threads_do_not_keep_a_process_that_raised():
    action = "import threading; threading.Thread(target=time.sleep, args=(10**6,)).start(); 1 / 0"
    lost, (code, err) = ends(start([COMPUTING, action]))
    assert_lost(*lost)
    assert code == 1
    assert "ZeroDivisionError" in err


def test_the_same_mistake_everywhere_is_told_once_by_each():
    for code, err in ends(start(["raise UserError('no room')"] * 3)):
        assert code == 2, err
        assert err.count("no room") == 1, err
        assert "own error: no room\n" in err


def test_a_killed_process_ends_those_that_compute_with_it():
    processes = start([COMPUTING] * 2)
    wait_until_in(processes)
    processes[1].kill()
    assert_lost(*ends(processes)[0])


def test_a_killed_process_ends_those_that_do_not():
    processes = start([SLEEPING] * 2, heartbeat=HEARTBEAT)
    wait_until_in(processes)
    processes[1].kill()
    assert_ended_by_jax(*ends(processes)[0])


@pytest.mark.parametrize("interrupted", [0, 1])
def test_ctrl_c_in_one_ends_all(interrupted: int):
    processes = start(["while True: time.sleep(0.1); interrupts.check()"] * 2, heartbeat=HEARTBEAT)
    wait_until_in(processes)
    processes[interrupted].send_signal(signal.SIGINT)
    results = ends(processes)
    assert_ended_by_jax(*results.pop(1 - interrupted))
    assert results[0][0] == 130
    assert "test: interrupted" in results[0][1]


def test_processes_that_end_in_order_wait_for_one_another():
    results = ends(start(["time.sleep(3)", "pass", "raise SystemExit(EXIT_PREEMPTED)"]))
    assert [code for code, _ in results] == [0, 0, EXIT_PREEMPTED], results
    assert not any("error" in err for _, err in results), results
