"""Plans for GPUs: names and wires by hand, and steps through jax's compiler for CUDA.

The latter want its plugin, which the tests do not install: `pip install jax-cuda12-plugin`, in the
version of jax.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from chopjax.cli import main
from chopjax.errors import UserError
from chopjax.plan.gpus import GPUS, MEMORY_FRACTION, Cluster
from chopjax.plan.topology import parse

PLUGIN = importlib.util.find_spec("jax_cuda12_plugin") is not None
with_plugin = pytest.mark.skipif(not PLUGIN, reason="jax-cuda12-plugin is not installed")


@pytest.fixture
def tiny(tiny: Path) -> Path:
    """With twice the batch, and products kept for the backward pass."""
    recipe = tiny.read_text().replace("= 8, 256", "= 16, 256").replace('"full"', '"dots"')
    tiny.write_text(recipe)
    return tiny


def cluster(name: str, slices: int = 1) -> Cluster:
    found = parse(name, slices)
    assert isinstance(found, Cluster)
    return found


def test_names():
    one, many = cluster("h100:1"), cluster("H200:32")
    assert (one.name, one.chips, one.nodes) == ("h100:1", 1, 1)
    assert (many.name, many.chips, many.nodes) == ("h200:32", 32, 4)
    assert many.accelerator_type == "NVIDIA H200, 4 nodes"
    twice = cluster("h100:8", slices=2)
    assert (twice.name, twice.chips, twice.nodes) == ("2 x h100:8", 16, 2)


@pytest.mark.parametrize("name", ["h100:0", "h100:3", "h100:12", "h100:99999"])
def test_gpus_that_fill_no_node(name: str):
    with pytest.raises(UserError, match="whole nodes of 8: h100:8, h100:16"):
        parse(name)


@pytest.mark.parametrize("name", ["h300:8", "h100", "h100-8", "h100:2x4"])
def test_what_is_no_name_of_gpus(name: str):
    with pytest.raises(UserError, match="GPU:NUMBER with a GPU of h100, h200"):
        parse(name)


def test_wires():
    """A ring within a node sends over NVLink; between nodes each GPU has a port of its own."""
    eight, sixteen = cluster("h100:8"), cluster("h100:16")
    whole = {"slice": 1, "data": 1, "fsdp": 8, "tensor": 1}
    assert eight.seconds(450 * 10**9, ("fsdp",), whole) == 1
    nodes = {"slice": 1, "data": 2, "fsdp": 8, "tensor": 1}
    assert sixteen.seconds(450 * 10**9, ("fsdp",), nodes) == 1
    assert sixteen.seconds(50 * 10**9, ("data",), nodes) == 1
    assert sixteen.seconds(400 * 10**9, ("data", "fsdp"), nodes) == 1
    halves = {"slice": 1, "data": 1, "fsdp": 4, "tensor": 4}  # four GPUs apart: two a node
    assert sixteen.seconds(100 * 10**9, ("fsdp",), halves) == 1


def test_memory_is_what_jax_takes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(MEMORY_FRACTION, raising=False)
    gpu = GPUS["h100"]
    assert gpu.usable_hbm == gpu.hbm * 3 // 4
    monkeypatch.setenv(MEMORY_FRACTION, "0.5")
    assert gpu.usable_hbm == gpu.hbm // 2
    monkeypatch.setenv(MEMORY_FRACTION, "half")
    with pytest.raises(UserError, match="XLA_PYTHON_CLIENT_MEM_FRACTION=half: a number"):
        gpu.usable_hbm  # noqa: B018


@pytest.mark.skipif(PLUGIN, reason="jax-cuda12-plugin is installed")
def test_without_the_compiler(tiny: Path, capfd: pytest.CaptureFixture):
    """What to install is said, and nothing is guessed."""
    assert main(["plan", "--config", str(tiny), "--topology", "h100:8"]) == 2
    said = capfd.readouterr()
    assert "pip install jax-cuda12-plugin==" in said.err
    assert "Traceback" not in said.err
    assert not said.out


def compiled(tiny: Path, topology: str, *flags: str) -> dict:
    """In a process of its own: the plugin, once there, is asked by all that jax does."""
    command = [sys.executable, "-m", "chopjax.cli", "plan", "--config", str(tiny), *flags]
    done = subprocess.run(
        [*command, "--topology", topology, "--json"],
        capture_output=True,
        text=True,
        env={key: value for key, value in os.environ.items() if key != "XLA_FLAGS"},
    )
    assert done.returncode in (0, 1), done.stderr
    plan: dict = json.loads(done.stdout)
    return plan


@with_plugin
def test_a_node(tiny: Path):
    plan = compiled(tiny, "h100:8")
    assert plan["attention"] == "cudnn"
    assert plan["fits"]
    (phase,) = plan["phases"]
    assert (phase["unknown_loops"], phase["unknown_kernels"]) == (0, [])
    # Two blocks' seven kernels, in bfloat16, forward and backward; the table and the head once, in
    # float32, as this compiler prefers.
    kernels, table = phase["parameters"] - 2 * 1024 * 256 - 5 * 256, 1024 * 256
    rows = {row["kind"]: row for row in phase["collectives"]}
    assert all(row["axes"] == ["fsdp"] for row in rows.values())
    gathered = rows["all-gather"]["payload"]
    assert gathered == pytest.approx(2 * (2 * kernels) + 2 * 4 * table, rel=0.005)
    assert rows["reduce-scatter"]["payload"] >= 2 * phase["parameters"] * 0.95
    # Three passes of products; of attention what the mask shows, in 2 products forward and 5 back.
    scores = 7 * 2 * 2 * 128 * (256 + 1) / 2
    flops = 2 * (3 * (kernels + table) + scores) * 16 * 256 / 8
    assert phase["executed_flops_per_step_and_chip"] == flops
    seconds = phase["seconds"]
    assert seconds["exposed_collectives"] > 0
    assert phase["step_seconds"] == pytest.approx(
        seconds["operations"] + seconds["exposed_collectives"]
    )
    memory = phase["memory"]
    assert not memory["estimated"]
    assert memory["parameters"] == phase["parameters"] * 4 / 8


@with_plugin
def test_two_nodes_and_no_room(tiny: Path):
    """Each of two nodes with a copy of the parameters; with attention that keeps its scores."""
    plan = compiled(
        tiny, "h100:16", "--config.mesh.data=2", "--config.data.batch_size=4096",
        "--config.data.sequence_length=4096", "--config.compute.remat=none",
        "--config.compute.attention=xla",
    )  # fmt: skip
    assert plan["accelerator_type"] == "NVIDIA H100 80GB HBM3, 2 nodes"
    (phase,) = plan["phases"]
    assert {tuple(row["axes"]) for row in phase["collectives"]} >= {("fsdp",), ("data",)}
    assert not plan["fits"]
    assert phase["memory"]["total"] > phase["memory"]["limit"]
    (knob,) = phase["knobs"]
    assert knob["compiled"]
    assert knob["total"] <= phase["memory"]["limit"]
