"""Several processes: one stops them all, another number and mesh goes on, the curve stays."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from launch.ports import finish, free_port
from train.runs import lines, prepare

from chopjax.launch.distributed import EXIT_PEER_LOST
from chopjax.train import checkpoints
from chopjax.train.config_file import load_config
from chopjax.train.loop import train

STEPS, SAVED = 40, 4
# The command line, with less patience for a process that is silent, and without torch, which
# transformers imports wherever it can, for as long as all the rest takes.
PROGRAM = """
import sys
import without_torch
from chopjax.cli import main
from chopjax.launch import distributed

distributed.HEARTBEAT_SECONDS = 20
sys.exit(main())
"""
RECIPE = """
from pathlib import Path
from train.runs import recipe

def get_config():
    return recipe(
        Path({folder!r}), "total_steps={steps}", "checkpoints.every={saved}", "evaluation.every=20",
        "mesh.data=2", "mesh.fsdp=2", "chop.keep=0,1,3", "chop.after_steps=4",
    )
"""


def start(
    folder: Path, workdir: Path | list[Path], count: int, *flags: str
) -> list[subprocess.Popen]:
    """A run on four fake devices, split among so many processes."""
    workdirs = workdir if isinstance(workdir, list) else [workdir] * count
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(4 // count),
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "JAX_NUM_PROCESSES": str(count),
    }
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        "train",
        "--config",
        str(folder / "recipe.py"),
        "--json",
    ]
    return [
        subprocess.Popen(
            [*command, "--workdir", str(workdirs[index]), *flags],
            env=environment | {"JAX_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]


def until(processes: list[subprocess.Popen], there: Callable[[], bool]) -> None:
    """Wait for something that running processes bring about."""
    deadline = time.monotonic() + 600
    while not there():
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes), finish(processes)
        time.sleep(0.02)


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.thorough)])
def test_killed_and_stopped_and_resumed_with_another_mesh_and_on_one_process(
    tmp_path, capsys, count
):
    folder = prepare(tmp_path)
    (folder / "recipe.py").write_text(RECIPE.format(folder=str(folder), steps=STEPS, saved=SAVED))
    alone = load_config(folder / "recipe.py", ["mesh.data=1", "mesh.fsdp=1"])
    train(alone, tmp_path / "one")

    workdir = tmp_path / "many"
    processes = start(folder, workdir, 2)
    until(processes, (workdir / f"checkpoints/{SAVED}").is_dir)
    processes[1].kill()
    (code, _, err), _ = finish(processes)
    resumed = checkpoints.steps(workdir / "checkpoints")[-1]
    if code == EXIT_PEER_LOST:  # it was computing with the other
        assert "the connection to another process is lost" in err
        assert "--process-id 1" in err
        assert f"the newest checkpoint is that of step {resumed} in" in err
    else:  # it waited for the other in a save, until jax's heartbeat
        assert code == -signal.SIGABRT, err
        assert "stopped sending heartbeats" in err

    # A resumed run cuts off the lines after its checkpoint, if there are any, and writes on.
    reached = max(lines(workdir, "loss"))
    processes = start(folder, workdir, 2)
    until(processes, lambda: max(lines(workdir, "loss")) > reached)
    processes[1].send_signal(signal.SIGTERM)  # the one that does not write
    for code, _, err in finish(processes):
        assert code == 75, err
    assert resumed < len(lines(workdir, "loss")) < STEPS

    more = shutil.copytree(workdir, tmp_path / "more")
    saved = checkpoints.steps(more / "checkpoints")[-1]
    ended = finish(start(folder, workdir, count, "--config.mesh.data=1", "--config.mesh.fsdp=4"))
    assert [code for code, _, _ in ended] == [0] * count, ended
    assert "resuming" in ended[0][2]
    assert "mesh: fsdp 4" in ended[0][2]
    assert json.loads(ended[0][1].splitlines()[-1])["steps"] == STEPS
    assert "{" not in ended[1][1]  # the first process speaks for all; gloo mutters
    capsys.readouterr()
    train(alone, more)
    assert f"resuming {more} after step {saved} of {STEPS}" in " ".join(
        capsys.readouterr().err.split()
    )

    for key, resumed_in in itertools.product(("loss", "eval_loss"), (workdir, more)):
        one, many = lines(tmp_path / "one", key), lines(resumed_in, key)
        assert one.keys() == many.keys()
        np.testing.assert_allclose(list(many.values()), list(one.values()), rtol=2e-3)


def test_a_folder_that_is_not_shared_is_named(tmp_path):
    folder = prepare(tmp_path)
    (folder / "recipe.py").write_text(RECIPE.format(folder=str(folder), steps=STEPS, saved=SAVED))
    elsewhere = [tmp_path / "host0", tmp_path / "host1"]
    for code, _, err in finish(start(folder, elsewhere, 2)):
        assert code == 2, err
        assert "processes 1 do not see the folder of process 0" in err
    assert not elsewhere[1].exists()
