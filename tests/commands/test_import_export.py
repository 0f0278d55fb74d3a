"""import and export as a user runs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from checkpoints import write_checkpoint, write_tokenizer

from chopjax.checkpoint.open import open_checkpoint
from chopjax.cli import main


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_checkpoint(tmp_path_factory.mktemp("parent") / "model")
    return write_tokenizer(folder)


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_there_and_back(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("import", model, tmp_path / "imported") == 0
    assert run("export", tmp_path / "imported", tmp_path / "back") == 0
    output = capsys.readouterr()
    assert output.out == ""
    assert "llama, 4 layers" in output.err
    before, after = open_checkpoint(str(model)), open_checkpoint(str(tmp_path / "back"))
    for name in before.tensors:
        assert before.array(name).tobytes() == after.array(name).tobytes()
    assert names(tmp_path / "back") == [".chopjax.json", *names(model)]


def test_again_needs_overwrite(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb, source, out in (
        ("import", model, tmp_path / "imported"),
        ("export", tmp_path / "imported", tmp_path / "back"),
    ):
        assert run(verb, source, out) == 0
        assert run(verb, source, out) == 2
        assert "--overwrite" in capsys.readouterr().err
        assert run(verb, source, out, "--overwrite") == 0
        # A folder of the other kind is not replaced, nor the source itself.
        assert run(verb, source, source, "--overwrite") == 2
    assert names(tmp_path) == ["back", "imported"]


def test_kept_layers_are_recorded(model: Path, tmp_path: Path) -> None:
    assert run("import", model, tmp_path / "imported", "--keep", "0,2-3") == 0
    assert run("export", tmp_path / "imported", tmp_path / "back") == 0
    raw = json.loads((tmp_path / "back" / "config.json").read_text())
    assert raw == json.loads((model / "config.json").read_text()) | {"num_hidden_layers": 3}
    record = json.loads((tmp_path / "back" / "chopjax.json").read_text())
    assert record["kept_layers"] == [0, 2, 3]
    assert record["parent"] == {"name": str(model), "revision": None, "num_layers": 4}
    before, after = open_checkpoint(str(model)), open_checkpoint(str(tmp_path / "back"))
    for new, old in enumerate((0, 2, 3)):
        name = "model.layers.{}.mlp.down_proj.weight"
        assert np.array_equal(after.array(name.format(new)), before.array(name.format(old)))
    # Chopped once more: in the numbering of the first parent.
    assert run("import", tmp_path / "back", tmp_path / "again", "--keep", "0,2") == 0
    record = json.loads((tmp_path / "again" / "huggingface" / "chopjax.json").read_text())
    assert record["kept_layers"] == [0, 3]
    assert len(record["history"]) == 2


def test_an_import_remembers_what_it_was_made_from(model: Path, tmp_path: Path) -> None:
    assert run("import", model, tmp_path / "whole") == 0
    assert run("import", tmp_path / "whole", tmp_path / "half", "--keep", "0,3") == 0
    record = json.loads((tmp_path / "half" / "huggingface" / "chopjax.json").read_text())
    assert record["parent"]["name"] == str(model)


def test_another_type_on_the_way_in(model: Path, tmp_path: Path) -> None:
    """After --dtype, export writes what config.json states, as after training."""
    assert run("import", model, tmp_path / "imported", "--dtype", "bfloat16") == 0
    assert run("export", tmp_path / "imported", tmp_path / "back") == 0
    after = open_checkpoint(str(tmp_path / "back"))
    assert {tensor.dtype for tensor in after.tensors.values()} == {"F32"}
    before = open_checkpoint(str(model))
    for name in before.tensors:
        rounded = before.array(name).astype("bfloat16").astype(np.float32)
        assert np.array_equal(after.array(name), rounded)


def test_nan(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faulty = write_checkpoint(tmp_path / "faulty")
    path = faulty / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    tensors["model.layers.3.mlp.up_proj.weight"][0, 0] = np.nan
    safetensors.numpy.save_file(tensors, path, {"format": "pt"})
    assert run("import", faulty, tmp_path / "strict", "--strict") == 2
    assert "model.layers.3.mlp.up_proj.weight" in capsys.readouterr().err
    assert names(tmp_path) == ["faulty"]
    assert run("import", faulty, tmp_path / "imported") == 0
    assert "warning" in capsys.readouterr().err


MISTAKES = {
    "no such model": (("import", "{model}x", "{out}"), "no such folder"),
    "a mesh of a wrong form": (("import", "{model}", "{out}", "--mesh", "4x2"), "fsdp=4,tensor=2"),
    "an unknown axis": (("import", "{model}", "{out}", "--mesh", "pipe=2"), "data, fsdp, tensor"),
    "too many devices": (("import", "{model}", "{out}", "--mesh", "fsdp=64"), "does not make"),
    "layers that are not there": (("import", "{model}", "{out}", "--keep", "0,9"), "9"),
    "revision of a folder": (("import", "{model}", "{out}", "--revision", "x"), "--revision"),
    "export of a checkpoint": (("export", "{model}", "{out}"), "nothing to export"),
    "export of nothing": (("export", "{model}x", "{out}"), "no such folder"),
    "a step of a checkpoint": (("export", "{model}", "{out}", "--step", "3"), "--step"),
    "a size without a number": (
        ("export", "{model}", "{out}", "--max-shard-size", "many"),
        "500MB, 5GB",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(
    model: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words, message = MISTAKES[name]
    arguments = [word.format(model=model, out=tmp_path / "a" / "out") for word in words]
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert "Traceback" not in output.err
    assert not names(tmp_path)


# One of Orbax's threads is late: it writes when another has failed.
FULL = """
import asyncio, resource, sys
from chopjax.cli import main
from orbax.checkpoint._src.serialization import jax_array_handlers
serialize = jax_array_handlers._async_serialize_shardings
async def late(*args, **kwargs):
    await asyncio.sleep(0.5)
    return await serialize(*args, **kwargs)
jax_array_handlers._async_serialize_shardings = late
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("verb", ["import", "export"])
def test_a_disk_that_takes_no_more(model: Path, tmp_path: Path, verb: str) -> None:
    source = model
    if verb == "export":
        source = tmp_path / "source"
        assert run("import", model, source) == 0
    folder = tmp_path / "folder"
    folder.mkdir()
    command = [sys.executable, "-c", FULL, verb, str(source), str(folder / "out")]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not names(folder)


@pytest.mark.parametrize("verb", ["import", "export"])
def test_killed_in_the_middle(model: Path, tmp_path: Path, verb: str) -> None:
    """Killed at many instants: no folder under the final name, or a whole one."""
    source = model
    if verb == "export":
        source = tmp_path / "source"
        assert run("import", model, source) == 0
    out = tmp_path / "folder" / "out"
    out.parent.mkdir()
    command = [sys.executable, "-m", "chopjax.cli", verb, str(source), str(out)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while not names(out.parent) and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if not out.exists():
        assert all(".partial-" in name for name in names(out.parent))
    assert run(verb, source, out, "--overwrite") == 0
    assert names(out.parent) == ["out"]
    assert run("inspect", out, "--check") == 0
