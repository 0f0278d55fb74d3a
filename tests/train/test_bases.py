"""What adapters stand on is the model that they began with, whatever becomes of its name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write_checkpoint
from fake_hub import running_hub
from train.runs import lines, prepare, recipe

from chopjax.checkpoint.describe import describe
from chopjax.checkpoint.export import export_model
from chopjax.checkpoint.load import load
from chopjax.checkpoint.peft_folder import export_adapter
from chopjax.errors import UserError
from chopjax.train.loop import train

ADAPTER = ("adapter.rank=2", "total_steps=2", "checkpoints.every=1")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("data"))


def test_a_branch_that_moves_is_not_followed(data: Path, tmp_path: Path) -> None:
    """A resumed run, and exports with a connection, without one, and with an empty cache, read the
    commit that the run began with."""
    moved = shutil.copytree(data / "model", tmp_path / "moved")
    write_checkpoint(moved, hidden_size=16, intermediate_size=24, head_dim=8, seed=7)
    script, model = Path(__file__).with_name("hub_base.py"), "somebody/tiny"
    with running_hub() as hub:
        commit = hub.hub.add(model, data / "model")
        paths = os.pathsep.join(sys.path)
        environment = hub.environment(tmp_path / "home", JAX_PLATFORMS="cpu", PYTHONPATH=paths)
        with subprocess.Popen(
            [sys.executable, str(script), str(data), str(tmp_path / "run"), model],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        ) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "trained\n"
            assert hub.hub.add(model, moved) != commit
            out, said = child.communicate("\n")
    assert out == "exported\n", said
    record = json.loads((tmp_path / "run/checkpoints/3/run.json").read_text())
    assert record["base"]["revision"] == commit
    exported = [
        tmp_path / f"run/{way}/model.safetensors" for way in ("online", "offline", "fetched")
    ]
    first, *others = (path.read_bytes() for path in exported)
    assert others == [first, first]
    embedding = load(str(tmp_path / "run/online")).params["embed"]["embedding"]
    want = load(str(data / "model")).params["embed"]["embedding"]
    np.testing.assert_array_equal(embedding, want)


def test_a_run_that_goes_on_is_read_where_it_stood(data: Path, tmp_path: Path) -> None:
    """Adapters on a run that is still training: its later steps are another model."""
    base, run = tmp_path / "base", tmp_path / "run"
    train(recipe(data, "total_steps=2", "checkpoints.every=1"), base)
    config = recipe(data, *ADAPTER)
    config.model = str(base)
    train(config, run)
    before = load(str(run)).params
    train(recipe(data, "total_steps=3", "checkpoints.every=1"), base, force=True)
    after = load(str(run)).params
    np.testing.assert_array_equal(before["embed"]["embedding"], after["embed"]["embedding"])
    shutil.rmtree(base / "checkpoints" / "2")
    with pytest.raises(UserError, match=r"cannot be opened: .* no checkpoint of step 2"):
        describe(str(run))


def test_another_run_at_the_same_step_is_refused(data: Path, tmp_path: Path) -> None:
    base, run = tmp_path / "base", tmp_path / "run"
    train(recipe(data, "total_steps=2"), base)
    config = recipe(data, *ADAPTER)
    config.model = str(base)
    train(config, run)
    shutil.rmtree(base)
    train(recipe(data, "total_steps=2", "seed=1"), base)
    with pytest.raises(UserError, match="not what the adapters in"):
        load(str(run))
    config.total_steps = 3
    with pytest.raises(UserError, match="not what this run's adapters were trained on so far"):
        train(config, run, force=True)


def test_a_run_is_resumed_from_another_folder(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data)
    config = recipe(data, *ADAPTER)
    config.model = "model"
    train(config, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    config.total_steps = 3
    train(config, tmp_path / "run", force=True)
    assert sorted(lines(tmp_path / "run", "loss")) == [1, 2, 3]


def test_adapters_of_another_shape_are_no_matter_of_force(data: Path, tmp_path: Path) -> None:
    """Nor are adapters in the folder of a run that trained all weights."""
    train(recipe(data, "total_steps=2"), tmp_path / "full")
    for rank in (2, 3):
        with pytest.raises(UserError, match=r"adapter\.rank: .*\n.*has another shape"):
            train(recipe(data, f"adapter.rank={rank}", "total_steps=2"), tmp_path / "full", True)


def test_an_export_leaves_the_base_of_its_run_alone(data: Path, tmp_path: Path) -> None:
    """Though chopjax made it, and --overwrite may replace what it made."""
    train(recipe(data, "total_steps=2"), tmp_path / "full")
    base = tmp_path / "base"
    export_model(str(tmp_path / "full"), base)
    config = recipe(data, *ADAPTER)
    config.model = str(base)
    train(config, tmp_path / "run")
    before = (base / "model.safetensors").read_bytes()
    for export in (export_model, export_adapter):
        with pytest.raises(UserError, match="base"):
            export(str(tmp_path / "run"), base, overwrite=True)
    assert (base / "model.safetensors").read_bytes() == before


def test_peft_s_folder_names_its_base_by_the_whole_path(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(recipe(data, *ADAPTER, "chop.keep=0,3"), tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    export_adapter("run", Path("out"))
    about = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert about["base_model_name_or_path"] == str(tmp_path / "out" / "base")
    assert json.loads((tmp_path / "out/chopjax.json").read_text())["adapter_base"] == "base"
