"""A process that fails ends with its own error, and the others do not outlive it. Real ones."""

from __future__ import annotations

import itertools
import signal
import subprocess
from collections.abc import Iterator

import pytest
from launch.ports import finish
from launch.programs import start, wait_until_in

from chopjax.launch.distributed import EXIT_PEER_LOST, EXIT_PREEMPTED

COMPUTING, SLEEPING = "while True: gather(1)", "time.sleep(10**6)"
CHECKING = "while True: time.sleep(0.1); interrupts.check()"
THREAD = "import threading; threading.Thread(target=time.sleep, args=(10**6,)).start(); 1 / 0"
HEARTBEAT = 20
# Name → what each process does, and which of them gets a signal when all have joined. All of these
# end by a time-out: jax's for the heartbeat, or one of `chopjax.launch.distributed`.
SLOW: dict[str, tuple[list[str], tuple[int, signal.Signals] | None]] = {
    "raises 0": (["raise UserError('no room')", SLEEPING], None),
    "raises 1": ([SLEEPING, "raise ValueError('a defect')"], None),
    "raises, barrier": (["wait_for_all('a save')", "raise ValueError"], None),
    "raises, thread": ([COMPUTING, THREAD], None),
    "killed": ([SLEEPING] * 2, (1, signal.SIGKILL)),
    "killed while computing": ([COMPUTING] * 2, (1, signal.SIGKILL)),
    "interrupted 0": ([CHECKING] * 2, (0, signal.SIGINT)),
    "interrupted 1": ([CHECKING] * 2, (1, signal.SIGINT)),
}


@pytest.fixture(scope="module", autouse=True)
def slow() -> Iterator[dict[str, list[subprocess.Popen]]]:
    """The processes of SLOW, started here so that all wait at once, and while other tests run."""
    running: dict[str, list[subprocess.Popen]] = {}
    try:
        for name, (actions, signalled) in SLOW.items():
            running[name] = start(actions, heartbeat=HEARTBEAT)
            wait_until_in(running[name])
            if signalled:
                index, number = signalled
                running[name][index].send_signal(number)
        yield running
    finally:
        for process in itertools.chain(*running.values()):
            process.kill()


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


def test_a_process_that_raises_ends_those_that_compute_with_it():
    lost, (code, err) = ends(start([COMPUTING, "raise ValueError('a defect')"]))
    assert_lost(*lost)
    assert code == 1
    assert "ValueError: a defect" in err


def test_the_same_mistake_everywhere_is_told_once_by_each():
    """And one of them exits a little later than it says so."""
    slow = "os._exit = lambda code, end=os._exit: (time.sleep(0.3), end(code)); "
    fails = "raise UserError('no room')"
    for code, err in ends(start([fails, slow + fails, fails])):
        assert code == 2, err
        assert err.count("no room") == 1, err
        assert "own error: no room\n" in err


def test_processes_that_end_in_order_wait_for_one_another():
    results = ends(start(["time.sleep(3)", "pass", "raise SystemExit(EXIT_PREEMPTED)"]))
    assert [code for code, _ in results] == [0, 0, EXIT_PREEMPTED], results
    assert not any("error" in err for _, err in results), results


# ---- those of SLOW ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failing", "code", "why"),
    [(0, 2, "own error: no room"), (1, 1, "ValueError: a defect")],
)
def test_a_process_that_raises_ends_the_others(slow, failing: int, code: int, why: str):
    results = ends(slow[f"raises {failing}"])
    assert_ended_by_jax(*results.pop(1 - failing))
    assert results[0][0] == code
    assert why in results[0][1]
    assert "stack trace" not in results[0][1]


def test_a_process_that_raises_ends_those_that_wait_at_a_barrier(slow):
    results = ends(slow["raises, barrier"])
    assert [code != 0 for code, _ in results] == [True, True], results


def test_threads_do_not_keep_a_process_that_raised(slow):
    lost, (code, err) = ends(slow["raises, thread"])
    assert_lost(*lost)
    assert code == 1
    assert "ZeroDivisionError" in err


def test_a_killed_process_ends_those_that_compute_with_it(slow):
    assert_lost(*ends(slow["killed while computing"])[0])


def test_a_killed_process_ends_those_that_do_not(slow):
    assert_ended_by_jax(*ends(slow["killed"])[0])


@pytest.mark.parametrize("interrupted", [0, 1])
def test_ctrl_c_in_one_ends_all(slow, interrupted: int):
    results = ends(slow[f"interrupted {interrupted}"])
    assert_ended_by_jax(*results.pop(1 - interrupted))
    assert results[0][0] == 130
    assert "test: interrupted" in results[0][1]
