"""Runs that train adapters: what is saved, resumed, chopped and refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from train.runs import STEPS, bits, lines, prepare, recipe, signal_after

from chopjax.errors import UserError
from chopjax.train.check import check
from chopjax.train.loop import train
from chopjax.train.settings import read

ADAPTER = ("adapter.rank=3", "adapter.dropout=0.2", "adapter.base=nf4")
CHOP = ("chop.keep=0,2-3", "chop.after_steps=4")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with dropout on a base in four bits that chops after step 4."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    train(recipe(data, *ADAPTER, *CHOP), workdir)
    return workdir


def test_adapters_and_their_moments_alone_are_saved(undisturbed: Path) -> None:
    names = bits(undisturbed)
    trained = {f"['blocks']['mlp']['{m}']['{p}']" for m in ("gate", "up", "down") for p in "ab"}
    assert {name.removeprefix("['params']") for name in names if "params" in name} == trained
    # Lion has one momentum; two counters of the optimizer, and the step.
    assert len([name for name in names if "['mu']" in name]) == len(trained)
    assert len(names) == 2 * len(trained) + 3
    record = json.loads((undisturbed / f"checkpoints/{STEPS}/run.json").read_text())
    assert record["base"]["fingerprint"]["sample"]
    assert record["num_layers"] == 3


@pytest.mark.parametrize("stop_after", [pytest.param(2, marks=pytest.mark.thorough), 7])
def test_a_stopped_run_goes_on_to_the_same_bits(
    data: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    """Before and after the chop, which cuts adapters and base; dropout draws the same again."""
    with monkeypatch.context() as patch:
        signal_after(patch, stop_after, signal.SIGTERM)
        with pytest.raises(SystemExit):
            train(recipe(data, *ADAPTER, *CHOP), tmp_path / "run")
    train(recipe(data, *ADAPTER, *CHOP, "compute.microbatches=1"), tmp_path / "run")
    assert bits(tmp_path / "run") == bits(undisturbed)
    assert lines(tmp_path / "run", "loss") == lines(undisturbed, "loss")


def test_it_learns_and_begins_where_the_model_is(data: Path, tmp_path: Path) -> None:
    """Adapters add nothing at first: the first step's loss is that of training all weights."""
    train(recipe(data, "total_steps=2"), tmp_path / "full")
    config = recipe(data, "adapter.rank=4", "adapter.targets=all")
    config.optimizer.peak_learning_rate = 0.02
    train(config, tmp_path / "lora")
    full, lora = lines(tmp_path / "full", "loss"), lines(tmp_path / "lora", "loss")
    assert lora[1] == pytest.approx(full[1], rel=1e-6)
    assert np.mean([lora[step] for step in (10, 11, 12)]) < lora[1] - 0.3


def test_another_model_under_the_same_name_is_refused(
    data: Path, undisturbed: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    other = tmp_path / "model"
    shutil.copytree(data / "model", other)
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-64] + os.urandom(64))
    here = data / "model"
    here.rename(data / "aside")
    try:
        shutil.copytree(other, here)
        with pytest.raises(UserError, match="not what this run's adapters were trained on so far"):
            train(recipe(data, *ADAPTER, *CHOP), workdir)
    finally:
        shutil.rmtree(here)
        (data / "aside").rename(here)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("adapter.alpha=8",), "adapter.rank is 0, and other fields of adapter are set"),
        (("adapter.rank=-1",), "adapter.rank is -1: not below 0"),
        (("adapter.rank=2", "adapter.dropout=1.0"), r"adapter.dropout lies in \[0, 1\)"),
        (("adapter.rank=2", "adapter.base=nf5"), "adapter.base: 'nf5' is not one of float, nf4"),
    ],
)
def test_settings_that_contradict_each_other(
    data: Path, overrides: tuple[str, ...], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        read(recipe(data, *overrides))


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ("querry", "adapter.targets: 'querry' is not one of .*did you mean query"),
        (",", "this model has no matrix"),
    ],
)
def test_targets_that_the_model_does_not_have(
    data: Path, tmp_path: Path, targets: str, said: str
) -> None:
    config = recipe(data, "adapter.rank=2", f"adapter.targets={targets}")
    with pytest.raises(UserError, match=said):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "huggingface").exists()
    with pytest.raises(UserError, match=said):
        check(config, str(tmp_path / "run"), "here")


@pytest.mark.thorough
def test_every_mesh_gives_the_same_curve() -> None:
    """Adapters with dropout, in microbatches or not, on bases of every kind: data 2 x fsdp 2 x
    tensor 2 beside one device. Codes are split like the kernels that they stand for."""
    script = Path(__file__).with_name("adapters_on_eight_devices.py")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    runs: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    for base in ("float", "nf4", "int8"):
        want = runs[f"{base}, one device"]["curve"]
        np.testing.assert_allclose(runs[base]["curve"], want, rtol=2e-4, err_msg=base)
    assert runs["float"]["shard"] == [2, 64, 128]  # L, D over fsdp, F over tensor
    assert runs["nf4"]["shard"] == [2, 32, 128]  # L, D/2 over fsdp, F over tensor
    assert runs["int8"]["shard"] == [2, 32, 128]  # L, D over fsdp, F over tensor: no blocks
    assert runs["float"]["a shard"] == [2, 64, 4]
