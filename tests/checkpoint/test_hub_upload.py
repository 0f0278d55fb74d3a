"""export --push-to-hub, against a hub on this machine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import write_checkpoint, write_tokenizer
from fake_hub import Fault, Running, running_hub

from chopjax.checkpoint.open import open_checkpoint
from chopjax.cli import main

TOKEN = "hf_" + "x" * 34


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Running]:
    with running_hub() as running:
        running.hub.uploads = tmp_path / "hub"
        running.hub.accounts[TOKEN] = ("me", "write")
        yield running


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model = write_tokenizer(write_checkpoint(folder / "model"))
    assert main(["import", str(model), str(folder / "imported"), "--keep", "0,3"]) == 0
    return folder / "imported"


def export(
    hub: Running, imported: Path, out: Path, *flags: str, token: str = TOKEN, **more: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "chopjax.cli", "export", str(imported), str(out), *flags]
    environment = hub.environment(out.parent / "home", JAX_PLATFORMS="cpu", **more)
    environment |= {"HF_TOKEN": token} if token else {}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_the_folder_is_uploaded_as_it_is(hub: Running, imported: Path, tmp_path: Path) -> None:
    done = export(hub, imported, tmp_path / "out", "--push-to-hub", "me/halved")
    assert done.returncode == 0, done.stderr
    assert f"{hub.endpoint}/me/halved" in done.stderr
    there = tmp_path / "hub" / "me" / "halved"
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"README.md", "chopjax.json", "config.json", "model.safetensors"}
    for name in names:
        assert (there / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert open_checkpoint(str(there)).config.num_layers == 2
    assert hub.hub.private == set()

    # Again, in other shards: the single file of before would be loaded in their place.
    flags = ["--push-to-hub", "me/halved", "--max-shard-size", "20KB"]
    (there / "notes.md").write_text("somebody's")
    done = export(hub, imported, tmp_path / "shards", *flags)
    assert done.returncode == 0, done.stderr
    assert not (there / "model.safetensors").exists()
    assert (there / "model.safetensors.index.json").exists()
    assert (there / "notes.md").exists()
    assert open_checkpoint(str(there)).config.num_layers == 2

    # A public repository does not become private by itself, and nothing is uploaded to it.
    hub.hub.forget()
    done = export(hub, imported, tmp_path / "third", "--push-to-hub", "me/halved", "--private")
    assert done.returncode == 2
    assert "exists already and is public" in done.stderr
    assert not (tmp_path / "third").exists()


def test_a_new_repository_can_be_private(hub: Running, imported: Path, tmp_path: Path) -> None:
    done = export(hub, imported, tmp_path / "out", "--push-to-hub", "me/secret", "--private")
    assert done.returncode == 0, done.stderr
    assert hub.hub.private == {"me/secret"}


@pytest.mark.parametrize("name", ["halved", "me/../x"])
def test_no_name_of_a_repository(
    imported: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(imported), str(tmp_path / "out"), "--push-to-hub", name]) == 2
    assert "OWNER/NAME is needed" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("token", "environment", "said"),
    [
        ("", {}, "there is no token"),
        pytest.param("hf_" + "y" * 34, {}, "Invalid user token", marks=pytest.mark.thorough),
        ("hf_" + "r" * 34, {}, "may only read"),
        (TOKEN, {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE does not allow"),
        (TOKEN, {"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot be reached"),
    ],
)
def test_what_cannot_work_is_said_before_the_export(
    hub: Running,
    imported: Path,
    tmp_path: Path,
    token: str,
    environment: dict[str, str],
    said: str,
) -> None:
    hub.hub.accounts["hf_" + "r" * 34] = ("me", "read")
    flags = ("--push-to-hub", "me/halved")
    done = export(hub, imported, tmp_path / "out", *flags, token=token, **environment)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "pattern", "said"),
    [
        ("them/halved", "nothing", "If them is spelled right"),
        ("me/halved", "POST /api/models/.*/commit", "403 Forbidden"),
    ],
)
def test_what_the_hub_refuses_leaves_a_whole_folder(
    hub: Running, imported: Path, tmp_path: Path, name: str, pattern: str, said: str
) -> None:
    hub.hub.faults.append(Fault(pattern, status=403, times=9))
    done = export(hub, imported, tmp_path / "out", "--push-to-hub", name)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert f"hf upload {name}" in done.stderr
    assert "Traceback" not in done.stderr
    assert open_checkpoint(str(tmp_path / "out")).config.num_layers == 2


def test_private_alone_means_nothing(
    imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(imported), str(tmp_path / "out"), "--private"]) == 2
    assert "--push-to-hub" in capsys.readouterr().err
