"""What settings.sh ships with, and what is checked before anything is asked for."""

import argparse
import re
from pathlib import Path

import pytest
from tpu_scripts.cloud import SCRIPTS, Cloud, more_settings

from chopjax.commands import train
from chopjax.train.config_file import load_config
from chopjax.train.settings import read


def shipped(folder: Path, **settings: str) -> Cloud:
    """settings.sh as somebody would edit it: in its place, so that later lines see the values."""
    cloud = Cloud(folder, ("gcloud", "chopjax"), NAME="llama")
    text = (SCRIPTS / "settings.sh").read_text()
    edited = {"PROJECT": "p", "ZONE": "z", "WORKDIR": "/mnt/share/my run"} | settings
    for name, value in edited.items():
        text, count = re.subn(f"(?m)^{name}=.*", f"{name}='{value}'", text)
        assert count == 1
    cloud.settings.write_text(text)
    return cloud


def test_shipped_command_is_one_that_training_takes(tmp_path: Path):
    cloud = shipped(
        tmp_path, TRAIN_STORE="/mnt/share/c4=2,gs://b/wiki=1", EVALUATION_STORE="/mnt/share/v"
    )
    done = cloud.run("tpu.sh", "launch", "--dry-run")
    assert done.returncode == 0, done.stderr
    ((_, verb, *arguments, _, where),) = cloud.calls
    assert (verb, where) == ("train", "elsewhere")
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    args = parser.parse_args([re.sub(r"^--config\.", "--set=", word) for word in arguments])
    assert args.workdir == "/mnt/share/my run"
    settings = read(load_config(SCRIPTS.parent / args.config, args.set))
    assert settings.data.train == "/mnt/share/c4=2,gs://b/wiki=1"
    assert settings.data.evaluation == "/mnt/share/v"


def test_shipped_command_wants_its_store(tmp_path: Path):
    cloud = shipped(tmp_path)
    done = cloud.run("tpu.sh", "watch", "--dry-run")
    assert done.returncode == 2
    assert "not set: TRAIN_STORE." in done.stderr
    assert cloud.calls == []


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
@pytest.mark.parametrize("verb", ["create", "launch", "watch"])
def test_nothing_is_asked_for_before_the_command_is_checked(
    tmp_path: Path, verb: str, dry: tuple[str, ...]
):
    cloud = shipped(tmp_path, TRAIN_STORE="/mnt/share/c4")
    cloud.reply({"--check": [{"code": 2, "err": "a gated model"}]})
    done = cloud.run("tpu.sh", verb, *dry)
    assert done.returncode == 2
    assert "a gated model" in done.stderr
    assert "TRAIN_COMMAND in" in done.stderr
    assert [call[0] for call in cloud.calls] == ["chopjax"]
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("my_training --x", "there is no `chopjax train` in TRAIN_COMMAND"),
        ("chopjax train --workdir $NOWHERE", "it is more than words"),
        ("chopjax train --config c.py | tee log", "it is more than words"),
    ],
)
def test_what_cannot_be_checked_is_said(cloud: Cloud, command: str, message: str):
    cloud.program("chopjax", "exit 1")
    more_settings(cloud, TRAIN_COMMAND=command)
    done = cloud.run("tpu.sh", "launch", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert message in done.stderr


def test_a_mount_that_cannot_be_that_of_workdir_is_said(cloud: Cloud):
    assert "MOUNT_COMMAND" not in cloud.run("tpu.sh", "launch", "--dry-run").stderr
    for command, message in [
        ("", "MOUNT_COMMAND is not set"),
        ("mount x /mnt/sha", "names no folder that WORKDIR=/mnt/share/llama lies in"),
        ("mount x /mnt/share2", "names no folder"),
        ("mount x /a/mnt/share", "names no folder"),
    ]:
        more_settings(cloud, MOUNT_COMMAND=command)
        assert message in cloud.run("tpu.sh", "launch", "--dry-run").stderr


def test_gcloud_missing(cloud: Cloud):
    (cloud.bin / "gcloud").unlink()
    done = cloud.run("tpu.sh", "launch")
    assert done.returncode == 2
    assert "gcloud is not on PATH" in done.stderr


def test_gcloud_fails(cloud: Cloud):
    cloud.reply({"create": [{"code": 1, "err": "ERROR: quota exceeded\n"}]})
    done = cloud.run("tpu.sh", "create")
    assert done.returncode == 1
    assert "quota exceeded" in done.stderr
    assert len(cloud.calls) == 1
