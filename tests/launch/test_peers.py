"""A process that fails takes the others along, who say which it was. Real processes."""

from __future__ import annotations

import signal
import subprocess

import pytest
from launch.ports import finish
from launch.programs import start, wait_until_in

from chopjax.launch import peers


def ends(processes: list[subprocess.Popen]) -> list[tuple[int, str]]:
    return [(code, err) for code, _, err in finish(processes)]


@pytest.mark.parametrize(
    ("failing", "action", "code", "why"),
    [
        (0, "raise UserError('no room')", 2, "no room"),
        (2, "raise ValueError('a defect')", 1, "a defect"),
    ],
)
def test_the_failure_of_one_ends_all_with_its_reason(failing: int, action: str, code: int, why):
    actions = ["wait()"] * 3
    actions[failing] = action
    results = ends(start(actions))
    assert [each for each, _ in results] == [code] * 3, results
    for index, (_, err) in enumerate(results):
        assert why in err
        if index != failing:
            assert f"error: process {failing} on " in err
            assert f" failed: {why}\ncheckpoint 7 is good" in err
            assert "--process-id 2" in err


def test_the_same_mistake_everywhere_is_told_once_by_each():
    for code, err in ends(start(["raise UserError('no room')"] * 3)):
        assert code == 2
        assert err.count("no room") == 1, err
        assert "own error: no room\n" in err


def test_a_killed_process_ends_those_that_compute_with_it():
    processes = start(["while True: gather(1)"] * 2)
    wait_until_in(processes)
    processes[1].kill()
    (code, err), _ = ends(processes)
    assert code == peers.EXIT_PEER_LOST, err
    assert "error: process 0 on " in err
    assert err.count("lost its connection to another process") == 1
    assert "checkpoint 7 is good" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("interrupted", "working"),
    [(0, "wait()"), (1, "while True: time.sleep(0.1); interrupts.check()")],
)
def test_ctrl_c_in_one_ends_all(interrupted: int, working: str):
    actions = ["wait()", "wait()"]
    actions[interrupted] = working
    processes = start(actions)
    wait_until_in(processes)
    processes[interrupted].send_signal(signal.SIGINT)
    results = ends(processes)
    assert results[interrupted][0] == 130
    assert "test: interrupted" in results[interrupted][1]
    code, err = results[1 - interrupted]
    assert code == 130, err
    assert f"error: process {interrupted} on " in err
    assert "was interrupted" in err


def test_processes_that_end_in_order_wait_for_one_another():
    results = ends(start(["time.sleep(3)", "pass", "raise SystemExit(EXIT_PREEMPTED)"]))
    assert [code for code, _ in results] == [0, 0, peers.EXIT_PREEMPTED], results
    assert not any("error" in err for _, err in results), results
