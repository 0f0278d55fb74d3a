"""benchmarks/tpu_compile.py without a TPU's compiler: MaxText's side with a stand-in that leaves
the dumps of a small program, ours as it was read."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "tests/plan/programs/jax_0.12.txt"  # as test_schedule.py has it, on four chips
GIB = 2**30

# Its train_compile: with one part a batch the program is too large, with two it is laid out; other
# settings are not taken. It does not end by itself, as the real one does not for minutes.
TRAIN_COMPILE = """
import pathlib, shutil, sys, time
from types import SimpleNamespace
import numpy as np

def get_topology_mesh(config):
    places = [SimpleNamespace(coords=(x, y, 0)) for y in range(2) for x in range(2)]
    return SimpleNamespace(shape={{"data": 1, "fsdp": 4}}, devices=np.array(places, dtype=object))

def main(argv):
    asked = dict(word.split("=", 1) for word in argv[2:])
    if asked.get("gradient_accumulation_steps") == "1":
        sys.exit("JaxRuntimeError: RESOURCE_EXHAUSTED: Used 20.0G of 15.75G hbm")
    if "xla_tpu_unheard_of" in asked["compile_xla_flags"]:
        sys.exit("ValueError: No such compile option: xla_tpu_unheard_of\\n")
    flags = dict(word[2:].split("=", 1) for word in asked["compile_xla_flags"].split())
    folder = pathlib.Path(flags["xla_dump_to"])
    stem = "module_0000.jit_train_step.cl_1."
    shutil.copy({program!r}, folder / f"{{stem}}after_optimizations.txt")
    layout = "allocation 0: size {state}, parameter 0\\n"
    layout += "allocation 1: size {work}, preallocated-temp\\n"
    (folder / f"{{stem}}after_optimizations-buffer-assignment.txt").write_text(layout)
    (folder / f"{{stem}}after_optimizations-memory-usage-report.txt").write_text("")
    (folder / f"{{stem}}after_optimizations_after_buffer_assignment.txt").write_text("")
    time.sleep(600)
"""


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import tpu_compile

    from chopjax.plan import plan

    def no_compiler(topology: Any) -> Any:
        raise ModuleNotFoundError

    monkeypatch.setattr(plan, "devices", no_compiler)
    monkeypatch.setattr(tpu_compile, "prepare_environment", lambda: None)
    monkeypatch.setattr(tpu_compile, "ours", _as_read)
    return tpu_compile


def _as_read(asked: Any) -> dict[str, Any]:
    """Half a step with options, and too large where all is done at once."""
    row = {"topology": asked.topology.name, "layers": 16, "usable": 16 * GIB, "mesh": {"fsdp": 4}}
    row |= {"versions": {"jax": "0.10"}, "compile_seconds": 9.0, "compile_cpu_seconds": 7.0}
    if asked.settings.compute.microbatches == 1:
        return row | {"fits": False, "refusal": "RESOURCE_EXHAUSTED"}
    faster = 2 if asked.settings.compute.compiler_options else 1
    collective = {"kind": "all-gather", "axes": ["fsdp"], "count": 6, "payload": 4e9}
    return row | {
        "fits": True,
        "memory": {"arguments": 2 * GIB, "temporaries": 3 * GIB, "total": 5 * GIB},
        "flops_over_model": 1.034,
        "hbm_bytes": 40e9,
        "collectives": [collective | {"wire": 3e9, "hidden": 1e9}],
        "unread": [],
        "exposed_collectives_seconds": 0.04 / faster,
        "hidden_collectives_seconds": 0.02,
        "step_seconds": asked.settings.compute.microbatches / faster,
        "mfu": 0.5,
    }


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """An interpreter that finds the stand-in for MaxText, and what it runs on."""
    package = tmp_path / "site/maxtext"
    for name in ("configs", "trainers/pre_train"):
        (package / name).mkdir(parents=True)
        (package / name / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "trainers/__init__.py").touch()
    (package / "configs/pyconfig.py").write_text("initialize = list\n")
    text = TRAIN_COMPILE.format(program=str(PROGRAM), state=3 * GIB, work=2 * GIB)
    (package / "trainers/pre_train/train_compile.py").write_text(text)
    for name in ("maxtext", "jax", "jaxlib", "libtpu", "flax"):
        about = tmp_path / f"site/{name}-0.7.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.7\n")
    interpreter = tmp_path / "python"
    interpreter.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path}/site exec {sys.executable} "$@"\n')
    interpreter.chmod(0o755)
    return interpreter


def _run(benchmark: Any, monkeypatch: pytest.MonkeyPatch, *flags: str) -> int:
    words = ["tpu_compile.py", "--topology", "v5e:2x2", "--config.data.batch_size=32", *flags]
    monkeypatch.setattr(sys, "argv", words)
    code: int = benchmark.main()
    return code


def test_both_programs_and_their_ratio(
    benchmark: Any,
    python: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert _run(benchmark, monkeypatch, "--peer-python", str(python), "--json") == 0
    said = capsys.readouterr().out
    *text, last = said.splitlines()
    rows = {(row["side"], row["name"]): row for row in json.loads(last)["rows"]}
    assert [name for side, name in rows if side == "chopjax"] == [
        "as shipped", "tuned", "with options",
    ]  # fmt: skip
    # One part is too large, and two are no slower than the recipe's.
    tuned = ["data.batch_size=32"]
    assert rows["chopjax", "tuned"]["settings"] == tuned
    assert rows["chopjax", "with options"]["step_seconds"] == 1.0

    peer = rows["MaxText", "tuned"]
    assert "gradient_accumulation_steps=2" in peer["settings"]
    assert peer["memory"]["arguments"] == 3 * GIB
    assert peer["memory"]["temporaries"] == 2 * GIB
    assert peer["flops"] == 6 * 3 * 2 * 4096 * 2048 * 2048
    assert peer["versions"]["maxtext"] == "0.7"
    kinds = {each["kind"]: each for each in peer["collectives"]}
    assert kinds["all-gather"]["axes"] == ["fsdp"]
    # A line of two chips each way: 100 GB/s, and nothing of it beside the products.
    wire = sum(each["wire"] for each in peer["collectives"])
    hidden = sum(each["hidden"] for each in peer["collectives"])
    assert peer["exposed_collectives_seconds"] == pytest.approx((wire - hidden) / 100e9)
    ratio = 2.0 / peer["step_seconds"]
    assert f"- chopjax tuned / MaxText tuned: {ratio:.3f} (aim: 0.97 or less)" in text
    row = next(line for line in text if line.startswith("| chopjax, as shipped |"))
    assert row.split(" | ")[1:8] == [
        "2.0", "3.0", "5.0 of 16.0", "1.034", "40", "40 / 20", "2.000",
    ]  # fmt: skip
    assert "| chopjax, as shipped | all-gather | fsdp | 6 | 4.00 | 2.00 / 1.00 |" in text


def test_without_the_peer_ours_alone(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = (
        "--try",
        "compute.after_chop.microbatches=1",
        "--try",
        "compute.after_chop.microbatches=8",
    )
    assert _run(benchmark, monkeypatch, *flags) == 0
    said = capsys.readouterr().out
    assert "pip install 'maxtext[tpu]" in said
    assert "| chopjax, tuned | 2.0 |" in said
    # Eight parts fit, and the recipe's two are faster.
    assert "- chopjax, tuned: data.batch_size=32\n" in said
    assert "MaxText, " not in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--topology", "v5e:3x3"), "there is no such slice"),
        (("--toplogy", "v5e:2x2"), "there is no flag --toplogy"),
        (("--config.compute.microbatch=2",), "compute.microbatch"),
        (("--peer-python", "no/such/python"), "no/such/python: No such file"),
        (("--peer-python", sys.executable), "it has no MaxText"),
        (("--config", "configs/no.py"), "no such file"),
    ],
)
def test_a_mistake_is_one_message(
    benchmark: Any,
    flags: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        _run(benchmark, monkeypatch, *flags)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_what_the_compiler_refuses_is_a_row(
    benchmark: Any,
    python: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(benchmark.SCRIPTS, "v5e", ({}, {"xla_tpu_unheard_of": "true"}))
    assert _run(benchmark, monkeypatch, "--peer-python", str(python)) == 0
    said = capsys.readouterr().out
    assert "its script: --xla_tpu_unheard_of=true. The compiler: ValueError: No such" in said
    assert "| MaxText, its script |  |  | refused |" in said
    assert "chopjax tuned / MaxText tuned" in said


def test_what_the_peer_says_when_it_fails(
    benchmark: Any,
    python: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken = python.parent / "site/maxtext/configs/pyconfig.py"
    broken.write_text("import a_module_that_is_not_there\n")
    with pytest.raises(SystemExit) as ended:
        _run(benchmark, monkeypatch, "--peer-python", str(python))
    assert ended.value.code == 2
    assert "No module named 'a_module_that_is_not_there'" in capsys.readouterr().err
