"""Processes that are measured side by side: each lives as long as the measurement, and works when
it is asked to."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Step = Callable[[np.ndarray], float]  # tokens [B, T+1] → loss


class Worker:
    """A process that runs `script --worker NAME ARGUMENT` and answers requests."""

    def __init__(self, script: str, name: str, argument: str):
        self._process = subprocess.Popen(
            [sys.executable, script, "--worker", name, argument],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, steps: int) -> dict[str, Any]:
        """So many steps; what `serve` prints about them."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            sys.exit(f"{self._process.args}: ended with {self._process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        self._process.communicate()  # end of file ends it


def serve(make: Callable[[], Callable[[int], dict[str, Any]]]) -> None:
    """In the process: `make` gives what answers a number of steps, and is called when it is this
    process's turn for the first time."""
    out, sys.stdout = sys.stdout, sys.stderr
    line = sys.stdin.readline()
    answer = make()
    while line:
        print(json.dumps(answer(int(line))), file=out, flush=True)
        line = sys.stdin.readline()


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
