"""inspect and import of a hub id: only the bytes that are needed leave the hub."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import write_checkpoint, write_tokenizer
from chop_models import write_model
from fake_hub import Running, running_hub

from chopjax.checkpoint.open import open_checkpoint

MODEL = "somebody/tiny-llama"
WITHOUT_TORCH = Path(__file__).parents[1] / "without_torch.py"


@pytest.fixture
def hub() -> Iterator[Running]:
    with running_hub() as running:
        yield running


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_checkpoint(tmp_path_factory.mktemp("hub") / "model", intermediate_size=512)
    return write_tokenizer(folder)


def run(hub: Running, home: Path, *arguments: object) -> str:
    """Standard output of a command that succeeds."""
    command = [sys.executable, str(WITHOUT_TORCH), *map(str, arguments)]
    environment = hub.environment(home, JAX_PLATFORMS="cpu")
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_inspect_downloads_the_header_alone(hub: Running, model: Path, tmp_path: Path) -> None:
    commit = hub.hub.add(MODEL, model)
    found = json.loads(run(hub, tmp_path / "home", "inspect", MODEL, "--json"))
    assert (found["model"], found["revision"]) == (MODEL, commit)
    assert found["bytes"] == sum(t.nbytes for t in open_checkpoint(str(model)).tensors.values())
    with (model / "model.safetensors").open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
    assert hub.hub.bytes_of("model.safetensors") == 8 + length


def test_import_and_export(hub: Running, model: Path, tmp_path: Path) -> None:
    commit = hub.hub.add(MODEL, model, "v1")
    home = tmp_path / "home"
    run(hub, home, "import", MODEL, tmp_path / "kept", "--keep", "0,3", "--revision", "v1")
    tensors = open_checkpoint(str(model)).tensors
    removed = sum(t.nbytes for n, t in tensors.items() if ".layers.1." in n or ".layers.2." in n)
    size = (model / "model.safetensors").stat().st_size
    assert hub.hub.bytes_of("model.safetensors") == size - removed
    run(hub, home, "export", tmp_path / "kept", tmp_path / "out")
    out = open_checkpoint(str(tmp_path / "out"))
    for name in out.tensors:
        expected = tensors[name.replace(".layers.1.", ".layers.3.")].read()
        assert out.array(name).tobytes() == expected.tobytes()
    record = json.loads((tmp_path / "out" / "chopjax.json").read_text())
    assert record["parent"] == {"name": MODEL, "revision": commit, "num_layers": 4}
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (
        model / "tokenizer.json"
    ).read_bytes()


def test_without_a_connection_it_is_said_once(hub: Running, model: Path, tmp_path: Path) -> None:
    hub.hub.add(MODEL, model)
    text = tmp_path / "text.txt"
    text.write_text("some words to score, and some more words")
    words = [sys.executable, str(WITHOUT_TORCH), "perplexity", MODEL, "--data", str(text)]
    environment = hub.environment(tmp_path / "home", JAX_PLATFORMS="cpu")
    first = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    offline = environment | {"HF_HUB_OFFLINE": "1"}
    again = subprocess.run(words, env=offline, capture_output=True, text=True)
    assert (again.returncode, again.stdout) == (0, first.stdout), again.stderr
    lines = again.stderr.splitlines()
    assert [line for line in lines if "as it was last seen" in line] == lines[:1]
    assert len(set(lines)) == len(lines)


def test_chop_of_a_model_that_chopjax_does_not_compute(hub: Running, tmp_path: Path) -> None:
    """Removed layers are not downloaded, and everything beside them is."""
    write_model(tmp_path / "parent", "phimoe")
    hub.hub.add("somebody/experts", tmp_path / "parent")
    home = tmp_path / "home"
    out = run(hub, home, "chop", "somebody/experts", tmp_path / "out", "--keep", "0,6", "--json")
    result = json.loads(out)
    header_and_kept = hub.hub.bytes_of("model.safetensors")
    size = (tmp_path / "parent" / "model.safetensors").stat().st_size
    assert header_and_kept == size - result["before"]["bytes"] + result["after"]["bytes"]
    assert (tmp_path / "out" / "model.safetensors").is_file()
