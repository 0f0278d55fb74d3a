"""Signals to small programs: what is said, what is left, and that they end. No jax."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

HEAD = """
import gc, os, signal, sys, time
from pathlib import Path
from chopjax import interrupts

def ready():
    print("ready", flush=True)

def work(pieces=10**9):
    for _ in range(pieces):
        interrupts.check()
        time.sleep(0.01)
"""
IN_C = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"  # a call of minutes


def start(body: str, ignored: bool = False) -> subprocess.Popen[str]:
    """A program that has said that it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", HEAD + body],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_ignore if ignored else None,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.communicate()[1]
    return process


def _ignore() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def end_of(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and standard error; the time limit is there for what would hang."""
    _, err = process.communicate(timeout=60)
    return process.returncode, err


PROGRAM = """
with interrupts.program("chopjax dig"):
    interrupts.advise("the same command digs on")
    ready()
    {}
"""


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "stopped by SIGTERM")],
)
@pytest.mark.parametrize("work", ["work()", IN_C, "time.sleep(600)"])
def test_one_signal_ends_it(number: signal.Signals, code: int, word: str, work: str) -> None:
    process = start(PROGRAM.format(work))
    process.send_signal(number)
    assert end_of(process) == (code, f"chopjax dig: {word}; the same command digs on\n")


def test_a_signal_in_a_callback_of_the_garbage_collector_is_not_lost() -> None:
    process = start("""
def collected(phase, info):
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(10**5):
        pass  # the handler runs in here, and what it raised would be swallowed

with interrupts.program("chopjax"):
    gc.disable()
    gc.callbacks.append(collected)
    ready()
    gc.collect()
    gc.callbacks.clear()
    work()
""")
    code, err = end_of(process)
    assert code == 130
    assert err == "chopjax: interrupted; the same command starts again\n"


def test_what_is_begun_goes_and_what_belongs_together_stays(tmp_path: Path) -> None:
    process = start(f"""
out = Path({str(tmp_path)!r})
def remove():
    (out / "half").unlink(missing_ok=True)

with interrupts.program("chopjax"), interrupts.at_end(remove):
    (out / "half").write_text("")
    with interrupts.whole():
        (out / "first").write_text("")
        ready()
        time.sleep(1)
        (out / "second").write_text("")
    {IN_C}
""")
    for _ in range(2):
        process.send_signal(signal.SIGINT)
    code, err = end_of(process)
    assert code == 130
    assert "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]


DEFERRED = """
with interrupts.program("chopjax train"):
    with interrupts.deferred("saving"):
        ready()
        while interrupts.asked() is None:
            time.sleep(0.01)
        print("asked", flush=True)
        {}
    interrupts.check()
"""


def test_work_that_saves_has_its_time() -> None:
    process = start(
        DEFERRED.format("time.sleep(interrupts.PATIENCE_SECONDS + 1); print('saved', flush=True)")
    )
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert out == "asked\nsaved\n"
    assert err.startswith("\nSIGTERM: saving\n")
    assert process.returncode == 143


def test_a_second_ctrl_c_does_not_wait_for_it() -> None:
    process = start(DEFERRED.format("time.sleep(600)"))
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert process.stdout.readline() == "asked\n"
    process.send_signal(signal.SIGTERM)  # does not hurry it
    process.send_signal(signal.SIGINT)
    code, err = end_of(process)
    assert code == 130
    assert err.endswith("chopjax train: interrupted; the same command starts again\n")


def test_what_is_ignored_stays_ignored() -> None:
    body = PROGRAM.format("os.kill(os.getpid(), signal.SIGINT); work(20)")
    assert end_of(start(body, ignored=True)) == (0, "")


def test_an_error_of_a_thread_whose_files_went_is_not_shown(tmp_path: Path) -> None:
    process = start(f"""
from chopjax.disk.atomic import new_folder
out = Path({str(tmp_path / "out")!r})
with interrupts.program("chopjax"), new_folder(out, "dig") as half:
    ready()
    for number in range(10**9):
        (half / str(number % 100)).write_text("")
""")
    for _ in range(2):
        process.send_signal(signal.SIGINT)
    code, err = end_of(process)
    assert code == 130
    assert err == "chopjax: interrupted; the same command starts again\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("announced", [False, True])
def test_in_a_notebook_ctrl_c_raises_as_usual(announced: bool) -> None:
    """In a block that looks at the flag, the second one does."""
    block = 'interrupts.deferred("saving")' if announced else "interrupts.at_end(print)"
    process = start(f"""
import threading
try:
    with interrupts.watching(75), {block}:
        ready()
        while interrupts.asked() is None:
            time.sleep(0.01)
        print("asked", flush=True)
        time.sleep(600)
except KeyboardInterrupt:
    print("caught", flush=True)
interrupts.check()
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
time.sleep(interrupts.PATIENCE_SECONDS + 1)  # in which nobody ends the process
""")
    assert process.stdout is not None
    process.send_signal(signal.SIGINT)
    if announced:
        assert process.stdout.readline() == "asked\n"
        assert process.stderr is not None
        assert [process.stderr.readline() for _ in range(2)] == ["\n", "Ctrl-C: saving\n"]
        process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "caught\n"
    assert end_of(process) == (0, "")


def test_processes_go_with_the_one_that_started_them(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        HEAD
        + """
import multiprocessing

def child():
    interrupts.end_with_parent()
    os.kill(os.getpid(), signal.SIGINT)  # as a terminal does: to all
    print(os.getpid(), flush=True)
    time.sleep(600)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with interrupts.program("chopjax"):
        with interrupts.running(context.Process(target=child)):
            time.sleep(600)
"""
    )
    for number, times in ((signal.SIGINT, 1), (signal.SIGINT, 2), (signal.SIGKILL, 1)):
        process = subprocess.Popen(
            [sys.executable, str(program)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert int(process.stdout.readline()) > 0
        for _ in range(times):
            process.send_signal(number)
        # To the end of file: until the child, which holds the other ends, has gone as well.
        _, err = process.communicate(timeout=60)
        assert "Traceback" not in err
        assert process.returncode == (130 if number == signal.SIGINT else -number)
