"""Processes that are measured side by side: each lives as long as the measurement, and works when
it is asked to."""

from __future__ import annotations

import contextlib
import json
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Step = Callable[[np.ndarray], float]  # tokens [B, T+1] → loss


class NoAnswer(SystemExit):
    """A worker that gives none, in one line; who does not catch it ends with that line."""


class Worker:
    """A process that runs `script --worker NAME ARGUMENT` and answers requests."""

    def __init__(self, script: str, name: str, argument: str, log: Path | None = None):
        """log: where what it says goes; to this process's stderr by default."""
        self.name, self._log = name, log
        with contextlib.ExitStack() as files:
            self._process = subprocess.Popen(
                [sys.executable, script, "--worker", name, argument],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=None if log is None else files.enter_context(log.open("ab")),
                text=True,
            )

    def ask(self, request: Any, seconds: float | None = None) -> dict[str, Any]:
        """What `serve` prints about a request, such as a number of steps.

        Raises NoAnswer where the worker fails, where it has ended, and after so many seconds; it is
        killed then.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # the answer will be missing, too
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        # An answer is one line, written at once.
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            self.kill()
            raise NoAnswer(f"{self.name}: no answer within {seconds:.0f} s")
        answer = self._process.stdout.readline()
        if not answer:
            raise NoAnswer(f"{self.name}: {self._ending(self._process.wait())}")
        read: dict[str, Any] = json.loads(answer)
        if "error" in read:
            raise NoAnswer(f"{self.name}: {read['error']}")
        return read

    def _ending(self, code: int) -> str:
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        lines = self._log.read_text(errors="replace").split("\n") if self._log else []
        said = [line.strip() for line in lines if line.strip()]
        return f"{how}: {said[-1]}" if said else how

    def ended(self) -> bool:
        return self._process.poll() is not None

    def end(self, seconds: float = 5) -> None:
        """One that works is killed after so many seconds; what waits for requests ends by itself,
        and gives its device back."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()  # end of file ends it

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def serve(make: Callable[[], Callable[[Any], dict[str, Any]]]) -> None:
    """In the process: `make` gives what answers requests, and is called when it is this process's
    turn for the first time. What goes wrong is an answer, too."""
    out, sys.stdout = sys.stdout, sys.stderr
    answer = None
    while line := sys.stdin.readline():
        try:
            answer = answer or make()
            reply = answer(json.loads(line))
        except Exception as error:
            traceback.print_exc()
            said = [part.strip() for part in str(error).splitlines() if part.strip()]
            reply = {"error": ": ".join([type(error).__name__, *said[:1]])}
        print(json.dumps(reply), file=out, flush=True)


def timed(step: Step, shape: tuple[int, int], vocabulary: int) -> Callable[[int], dict[str, Any]]:
    """Seconds, losses and peaks of memory of so many steps on random tokens."""
    draw = np.random.default_rng(0)
    rows, length = shape
    peak_process = 0

    def answer(steps: int) -> dict[str, Any]:
        nonlocal peak_process
        peak_process = max(peak_process, peak_memory())
        reset_peak_memory()
        seconds, losses = [], []
        for _ in range(steps):
            tokens = draw.integers(0, vocabulary, (rows, length + 1), dtype=np.int32)
            begun = time.perf_counter()
            losses.append(step(tokens))
            seconds.append(time.perf_counter() - begun)
        peak_process = max(peak_process, peak_memory())
        return {
            "seconds": seconds,
            "losses": losses,
            "peak_steps": peak_memory(),
            "peak_process": peak_process,
        }

    return answer


def peak_memory() -> int:
    """Bytes of the largest resident set since the last reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("no VmHWM in /proc/self/status")


def reset_peak_memory() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def write_weights(folder: str, raw_config: dict[str, Any]) -> None:
    """A checkpoint of random weights, by a process of its own."""
    script = (
        "import json, sys, torch, transformers; torch.manual_seed(0); "
        "raw = json.loads(sys.argv[2]); kind = raw.pop('model_type'); "
        "config = transformers.AutoConfig.for_model(kind, **raw); "
        "model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32); "
        "model.save_pretrained(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", script, folder, json.dumps(raw_config)], check=True)
