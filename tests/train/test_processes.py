"""Several processes: one stops them all, another number of them goes on, the curve stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from train.ports import free_port
from train.runs import lines, prepare

STEPS = 40
RECIPE = """
from pathlib import Path
from train.runs import recipe

def get_config():
    return recipe(
        Path({folder!r}), "total_steps={steps}", "checkpoints.every=20", "evaluation.every=20",
        "mesh.data=2", "mesh.fsdp=2", "chop.keep=0,1,3", "chop.after_steps=4",
    )
"""


def start(folder: Path, workdir: Path, count: int) -> list[subprocess.Popen]:
    """A run on four fake devices, split among so many processes."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={4 // count}",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    if count > 1:
        environment |= {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
            "JAX_NUM_PROCESSES": str(count),
        }
    command = ["chopjax.cli", "train", "--config", str(folder / "recipe.py"), "--json"]
    return [
        subprocess.Popen(
            [sys.executable, "-m", *command, "--workdir", str(workdir)],
            env=environment | {"JAX_PROCESS_ID": str(index)} if count > 1 else environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]


def finish(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each; those that hang are killed."""
    ended = []
    for process in processes:
        try:
            out, err = process.communicate(timeout=600)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
        ended.append((process.returncode, out, err))
    return ended


def test_stopped_on_two_processes_and_resumed_on_four(tmp_path):
    folder = prepare(tmp_path)
    (folder / "recipe.py").write_text(RECIPE.format(folder=str(folder), steps=STEPS))
    ((code, _, err),) = finish(start(folder, tmp_path / "one", 1))
    assert code == 0, err

    workdir = tmp_path / "many"
    processes = start(folder, workdir, 2)
    deadline = time.monotonic() + 600
    while not (workdir / "metrics.jsonl").exists() or len(lines(workdir, "loss")) < 2:
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes), finish(processes)
        time.sleep(0.02)
    processes[1].send_signal(signal.SIGTERM)  # the one that does not write
    for code, _, err in finish(processes):
        assert code == 75, err
    assert 2 <= len(lines(workdir, "loss")) < STEPS

    ended = finish(start(folder, workdir, 4))
    assert [code for code, _, _ in ended] == [0, 0, 0, 0], ended
    assert "resuming" in ended[0][2]
    assert json.loads(ended[0][1].splitlines()[-1])["steps"] == STEPS
    assert "{" not in ended[1][1]  # the first process speaks for all; gloo mutters

    for key in ("loss", "eval_loss"):
        one, many = lines(tmp_path / "one", key), lines(workdir, key)
        assert one.keys() == many.keys()
        np.testing.assert_allclose(list(many.values()), list(one.values()), rtol=2e-3)
