"""Whole plans through the real compiler, in processes of their own: libtpu is a guest that may
abort."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from chopjax.cli import main
from chopjax.plan.dump import CODE_RESERVE


def on_its_own() -> dict[str, str]:
    """An environment without what the tests ask of XLA on processors: libtpu ends where it does not
    know a flag."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}


def compiled(*arguments: str) -> dict:
    """In an environment with flags that libtpu does not know: they are not the plan's."""
    done = subprocess.run(
        [sys.executable, "-m", "chopjax.cli", "plan", "--json", *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        env={k: v for k, v in os.environ.items() if not k.startswith("JAX_")},
    )
    assert done.returncode in (0, 1), done.stderr
    plan = json.loads(done.stdout)
    assert plan["fits"] == (done.returncode == 0)
    return plan


def test_compiled(tiny: Path):
    """The real step, with splash attention under shard_map, for four chips of v5e.

    With segment ids: the compiler accepts the kernel in its harder form.
    """
    pytest.importorskip("libtpu")
    run = ["--config", str(tiny), "--topology", "v5e:2x2", "--config.data.mask_documents=True"]
    plan = compiled(*run)
    (phase,) = plan["phases"]
    assert plan["compiled"]
    assert plan["attention"] == "splash"
    assert plan["fits"]
    memory = phase["memory"]
    assert memory["parameters"] == phase["parameters"] * 4 / 4
    assert not memory["estimated"]
    assert memory["activations"] > 0
    assert memory["padding_and_code"] >= CODE_RESERVE
    assert (phase["unknown_loops"], phase["unknown_kernels"]) == (0, [])
    # Two of three passes gather the seven kernels of each of two blocks, in bfloat16, and the table
    # and the head are gathered once …
    kernels, table = phase["parameters"] - 2 * 1024 * 256 - 5 * 256, 1024 * 256
    gathered = [r for r in phase["collectives"] if r["kind"] == "all-gather"]
    assert sum(r["count"] for r in gathered) == 2 * 2 * 7 + 2
    assert sum(r["payload"] for r in gathered) == 2 * (2 * kernels + 2 * table)
    # … and every gradient meets its peers once.
    reduced = [r for r in phase["collectives"] if r["kind"] in ("reduce-scatter", "all-reduce")]
    assert sum(r["payload"] for r in reduced) >= 2 * phase["parameters"] * 0.95
    assert all(r["axes"] == ["fsdp"] for r in gathered)
    # Three passes, and the blocks' forward pass again but for its last product, which no gradient
    # asks for. Of attention three of four tiles of 128, in 2 products forward, 2 again, and 5.
    weights = 3 * (kernels + table) + kernels - 2 * 512 * 256
    scores = 9 * 2 * 2 * 128 * 256 * 3 / 4  # of 2 blocks with 2 heads
    # Queries and keys of 3 heads are turned by a product, twice forward and once back.
    turns = 3 * 3 * 2 * 128**2
    executed = 2 * (weights + scores + turns) * 8 * 256 / 4
    assert phase["executed_flops_per_step_and_chip"] == executed
    seconds = phase["seconds"]
    assert seconds["compute"] < seconds["operations"] < seconds["compute"] + seconds["hbm"]
    assert phase["step_seconds"] == pytest.approx(
        seconds["operations"] + seconds["exposed_collectives"]
    )
    assert 0 < phase["mfu"] < 1

    # Reading the layout before there is machine code loses nothing but the code's own size.
    whole = compiled(*run, "--machine-code")["phases"][0]
    assert whole["machine_code"]
    assert not phase["machine_code"]
    assert whole["memory"]["padding_and_code"] < CODE_RESERVE
    # Constants, some kilobytes of them, count as temporaries there.
    assert abs(memory["activations"] - whole["memory"]["activations"]) < 64 * 2**10
    assert phase["collectives"] == whole["collectives"]
    # Two compilations may place a few kilobytes differently.
    assert phase["hbm_traffic"] == pytest.approx(whole["hbm_traffic"], rel=0.01)


GROUPED = """
from chopjax.plan.topology import devices, parse, prepare_environment
prepare_environment()
import jax, jax.numpy as jnp
from chopjax.compilation import grouped_products

ROWS, WIDTH, OUT, GROUPS = 4096, 512, 1024, 16
place = jax.sharding.SingleDeviceSharding(devices(parse("v6e:2x2"))[0])

def array(*shape, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

lowered = jax.jit(jax.lax.ragged_dot).lower(
    array(ROWS, WIDTH), array(GROUPS, WIDTH, OUT), array(GROUPS, dtype=jnp.int32)
)
program = lowered.compile(compiler_options=grouped_products(lowered))
print(program.cost_analysis()["flops"] / (2 * ROWS * WIDTH * OUT))
plain = jax.jit(jnp.dot).lower(array(ROWS, WIDTH), array(WIDTH, OUT))
print(grouped_products(plain))
"""


def test_grouped_products_multiply_the_rows_that_there_are():
    """And not every row with each of sixteen kernels."""
    pytest.importorskip("libtpu")
    run = [sys.executable, "-c", GROUPED]
    done = subprocess.run(run, capture_output=True, text=True, check=True, env=on_its_own())
    share, nothing = done.stdout.splitlines()
    assert float(share) == pytest.approx(1, rel=0.01)
    assert nothing == "{}"


@pytest.mark.thorough
def test_experts(tiny: Path):
    """A step of a model with experts through the compiler, for four chips in two ways."""
    pytest.importorskip("libtpu")
    experts = '"model_type": "olmoe", "num_experts": 8, "num_experts_per_tok": 2'
    tiny.write_text(tiny.read_text().replace('"model_type": "llama"', experts))
    mesh = ["--config.mesh.fsdp=2", "--config.mesh.tensor=2", "--config.compute.remat=dots"]
    plan = compiled("--config", str(tiny), "--topology", "v5e:2x2", *mesh)
    (phase,) = plan["phases"]
    assert plan["compiled"]
    assert plan["fits"]
    assert (phase["unknown_loops"], phase["unknown_kernels"]) == (0, [])
    expert = 3 * 256 * 512
    assert phase["parameters"] - phase["active_parameters"] == 2 * 6 * expert
    # The kernels of all experts are gathered forward and backward, in bfloat16, over fsdp alone.
    gathered = [r for r in phase["collectives"] if r["kind"] == "all-gather"]
    over_fsdp = sum(r["payload"] for r in gathered if r["axes"] == ["fsdp"])
    assert over_fsdp >= 2 * 2 * 2 * 8 * expert / 2 * 0.95


@pytest.mark.thorough
def test_a_teacher(tiny: Path, tmp_path: Path):
    """A step with all terms through the compiler, the vocabulary over tensor."""
    pytest.importorskip("libtpu")
    raw = {"model_type": "llama", "hidden_size": 256, "intermediate_size": 512, "vocab_size": 1024}
    raw |= {"num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(raw | {"max_position_embeddings": 4096}))
    tiny.write_text(tiny.read_text().replace("config.scratch =", "ignored ="))
    terms = [f"--config.teacher.{term}=0.5" for term in ("logits", "hidden", "attention", "mimic")]
    plan = compiled(
        "--config", str(tiny), "--topology", "v5e:2x2", f"--config.model={path}", *terms,
        "--config.teacher.model=parent", "--config.mesh.fsdp=2", "--config.mesh.tensor=2",
    )  # fmt: skip
    (phase,) = plan["phases"]
    assert plan["compiled"]
    assert plan["fits"]
    assert (phase["unknown_loops"], phase["unknown_kernels"]) == (0, [])
    assert 0 < phase["mfu"] < 1


@pytest.mark.thorough
def test_collectives_on_sparse_cores(tiny: Path):
    """Compiler options of the user's: what they put elsewhere is all there, and hidden."""
    pytest.importorskip("libtpu")
    offload = "xla_tpu_enable_sparse_core_collective_offload"
    kinds = ("all_gather", "2d_all_gather", "reduce_scatter", "all_reduce")
    options = ",".join(f"{offload}_{kind}=true" for kind in kinds)
    plan = compiled(
        "--config", str(tiny), "--topology", "v5p:2x2x1",
        f"--config.compute.compiler_options={options}",
    )  # fmt: skip
    (phase,) = plan["phases"]
    assert (phase["unknown_loops"], phase["unknown_kernels"]) == (0, [])
    rows = {row["kind"]: row for row in phase["collectives"]}
    # As test_compiled has them where the cores see to them.
    kernels, table = phase["parameters"] - 2 * 1024 * 256 - 5 * 256, 1024 * 256
    assert rows["all-gather"]["count"] == 2 * 2 * 7 + 2
    assert rows["all-gather"]["payload"] == 2 * (2 * kernels + 2 * table)
    reduced = [rows["reduce-scatter"], rows["all-reduce"]]
    assert sum(row["payload"] for row in reduced) >= 2 * phase["parameters"] * 0.95
    # Sums of single numbers stay.
    assert all(row["hidden"] > 0.98 * row["wire"] for row in rows.values())


def test_options_that_the_compiler_does_not_know(tiny: Path, capfd: pytest.CaptureFixture):
    pytest.importorskip("libtpu")
    arguments = ["plan", "--config", str(tiny), "--topology", "v5e:2x2"]
    assert main([*arguments, "--config.compute.compiler_options=xla_nonsense=true"]) == 2
    assert "compiler_options: No such compile option: 'xla_nonsense'" in capfd.readouterr().err


@pytest.mark.thorough
@pytest.mark.parametrize("topology", ["v4:2x2x1", "v6e:2x2"])
def test_other_chips(tiny: Path, topology: str):
    pytest.importorskip("libtpu")
    plan = compiled("--config", str(tiny), "--topology", topology)
    assert plan["compiled"]
    assert plan["fits"]
    assert plan["phases"][0]["collectives"]


@pytest.mark.thorough
def test_between_slices(tiny: Path):
    """Two slices: parameters are gathered within each, gradients meet over the network."""
    pytest.importorskip("libtpu")
    plan = compiled("--config", str(tiny), "--topology", "v5p:2x2x1", "--config.mesh.slices=2")
    assert plan["topology"] == "2 x v5p:2x2x1"
    assert plan["chips"] == 8
    rows = plan["phases"][0]["collectives"]
    assert not any("slice" in row["axes"] for row in rows if row["kind"] == "all-gather")
    # Every chip sends its quarter of the gradients, and no more: in bfloat16, the head's and the
    # table's in float32.
    (across,) = [row for row in rows if "slice" in row["axes"]]
    parameters = plan["phases"][0]["parameters"]
    assert across["kind"] == "all-reduce"
    assert 2 * parameters / 4 * 0.95 < across["wire"] < 4 * parameters / 4


def test_refused(tiny: Path):
    """What does not fit is told with the compiler's own words, and how to mend it."""
    pytest.importorskip("libtpu")
    plan = compiled(
        "--config", str(tiny), "--topology", "v5e:1x1", "--config.data.batch_size=1024",
        "--config.data.sequence_length=4096", "--config.compute.remat=none",
        "--config.compute.attention=xla", "--config.mesh.data=-1", "--config.mesh.fsdp=1",
    )  # fmt: skip
    (phase,) = plan["phases"]
    assert not plan["fits"]
    assert "exceeds available HBM" in phase["refusal"]
    assert phase["memory"]["total"] > phase["memory"]["limit"]
    # The advice went through the compiler, too.
    (knob,) = phase["knobs"]
    assert knob["compiled"]
    assert knob["total"] <= phase["memory"]["limit"]


def test_the_compiler_ends_with_the_one_that_waits(tmp_path: Path):
    """Killed without a chance to close: neither process nor dump may stay."""
    code = """
import multiprocessing, sys, time
from chopjax.plan.compile import die_with_parent
process = multiprocessing.get_context("spawn").Process(target=die_with_parent, args=sys.argv[1:])
process.start()
print(process.pid, flush=True)
time.sleep(600)
"""
    dumps = tmp_path / "dumps"
    dumps.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", code, str(dumps)], stdout=subprocess.PIPE, text=True
    ) as waiting:
        assert waiting.stdout is not None
        child = int(waiting.stdout.readline())
        assert Path(f"/proc/{child}").exists()
        waiting.kill()
        # The pipe's end: the child, which has it too, is gone.
        assert waiting.stdout.read() == ""
    assert not dumps.exists()
