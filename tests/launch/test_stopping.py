"""SIGTERM before training begins ends a run soon, also while the main thread is in C."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from chopjax.launch.distributed import EXIT_PREEMPTED

# Hashing on and on is compiling to a signal: one call, which Python's handlers wait for.
COMPILING = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"
PROGRAMS = {
    "compiling": f"""
from chopjax.launch.stopping import stop_requests
with stop_requests():
    print("in", flush=True)
    {COMPILING}
""",
    "waiting for others": """
import time
from chopjax import interrupts
from chopjax.launch.distributed import EXIT_PREEMPTED
with interrupts.watching(EXIT_PREEMPTED):
    print("in", flush=True)
    time.sleep(60)
""",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_sigterm_before_training(name: str):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAMS[name]], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(40) == EXIT_PREEMPTED
    process.stdout.close()
