"""tpu.sh against a recording stand-in: exact calls of each verb; every script: help, dry run."""

import subprocess
import sys
from pathlib import Path

import pytest
from tpu_scripts.cloud import DESCRIBE, SCRIPTS, Cloud, more_settings

WHERE = ["--project=my-project", "--zone=us-east5-a"]
QUEUED = ["gcloud", "compute", "tpus", "queued-resources"]
FIRST = ["--node=0", "--worker=0"]
EVERYWHERE = ["--node=all", "--worker=all", "--batch-size=all"]


def test_shellcheck():
    scripts = sorted(script.name for script in SCRIPTS.glob("*.sh"))
    assert len(scripts) >= 6
    done = subprocess.run(
        [Path(sys.executable).with_name("shellcheck"), "-x", *scripts],
        cwd=SCRIPTS,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_create_asks_and_waits_until_active(cloud: Cloud):
    cloud.reply({DESCRIBE: ["WAITING_FOR_RESOURCES\n", "PROVISIONING\n", "ACTIVE\n"]})
    done = cloud.run("tpu.sh", "create")
    assert done.returncode == 0, done.stderr
    assert cloud.calls[0] == [
        *QUEUED, "create", "llama", *WHERE, "--accelerator-type=v5p-128",
        "--runtime-version=v2-alpha-tpuv5", "--node-id=llama", "--spot",
    ]  # fmt: skip
    assert cloud.calls[1] == [*QUEUED, "describe", "llama", *WHERE, "--format=value(state.state)"]
    for state in ("WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"):
        assert f"llama is {state}" in done.stderr


def test_create_with_every_choice(cloud: Cloud):
    more_settings(
        cloud, SLICES="2", CAPACITY="reserved", VALID_UNTIL="12h", NETWORK="net",
        SUBNETWORK="sub", SERVICE_ACCOUNT="me@x", SSH_ROUTE="iap",
    )  # fmt: skip
    cloud.reply({DESCRIBE: ["ACTIVE\n"]})
    assert cloud.run("tpu.sh", "create").returncode == 0
    assert cloud.calls[0][len(QUEUED) + 4 :] == [
        "--accelerator-type=v5p-128", "--runtime-version=v2-alpha-tpuv5", "--node-count=2",
        "--node-prefix=llama", "--reserved", "--valid-until-duration=12h", "--network=net",
        "--subnetwork=sub", "--service-account=me@x", "--internal-ips",
    ]  # fmt: skip


def test_on_demand_is_neither_spot_nor_reserved(cloud: Cloud):
    more_settings(cloud, CAPACITY="on-demand")
    cloud.reply({DESCRIBE: ["ACTIVE\n"]})
    cloud.run("tpu.sh", "create")
    assert not {"--spot", "--reserved"} & set(cloud.calls[0])


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
def test_create_stops_when_the_request_is_lost(cloud: Cloud, state: str):
    cloud.reply({DESCRIBE: [f"{state}\n"]})
    done = cloud.run("tpu.sh", "create")
    assert done.returncode == 2
    assert "will not become ACTIVE" in done.stderr


def test_launch_stop_collect_delete(cloud: Cloud):
    cloud.program("tar", 'echo "$@" > tar_was_called')
    (cloud.folder / "runs/chopjax").mkdir(parents=True)
    (cloud.folder / "runs/chopjax/llama-workdir.tar.gz").touch()  # what scp would bring
    for verb in ("launch", "stop", "collect", "delete"):
        done = cloud.run("tpu.sh", verb)
        assert done.returncode == 0, done.stderr
    ssh = [*QUEUED, "ssh", "llama", *WHERE]
    job = "--command=chopjax/tpu_scripts/remote_job.sh"
    share = "/mnt/share/llama 'sudo mount share /mnt/share'"
    train = "'chopjax train --config '\\''my config.py'\\'' --workdir /mnt/share/llama'"
    archive = "llama-workdir.tar.gz"
    assert cloud.calls == [
        [*ssh, *EVERYWHERE, f"{job} start {share} {train}"],
        [*ssh, *EVERYWHERE, f"{job} stop 240"],
        [*ssh, *EVERYWHERE, f"{job} log {share}"],
        [*ssh, *FIRST,
         f"--command=tar -czf {archive} --exclude=checkpoints -C /mnt/share/llama . || [ $? = 1 ]"],
        [*QUEUED, "scp", f"llama:{archive}", f"runs/chopjax/{archive}", *WHERE, *FIRST],
        [*QUEUED, "delete", "llama", *WHERE, "--force", "--quiet"],
    ]  # fmt: skip
    unpacked = (cloud.folder / "tar_was_called").read_text()
    assert unpacked == f"-xzf runs/chopjax/{archive} -C runs/chopjax\n"
    assert not (cloud.folder / "runs/chopjax" / archive).exists()


def test_setup_sends_this_checkout_to_every_machine(cloud: Cloud):
    assert cloud.run("tpu.sh", "setup").returncode == 0
    copy, install = cloud.calls
    assert copy[: len(QUEUED) + 1] == [*QUEUED, "scp"]
    assert copy[len(QUEUED) + 1].endswith("/llama-source.tar.gz")
    assert copy[len(QUEUED) + 2 :] == ["llama:", *WHERE, *EVERYWHERE]
    mount = "remote_job.sh mount /mnt/share/llama 'sudo mount share /mnt/share'; python3 -m pip"
    assert f"cd chopjax; tpu_scripts/remote_job.sh token ''; tpu_scripts/{mount}" in install[-1]
    assert install[:-1] == [*QUEUED, "ssh", "llama", *WHERE, *EVERYWHERE]
    assert "uv venv --quiet --python 3.12 .venv" in install[-1]
    assert "'.[tpu]'" in install[-1]


VERBS = {
    "tpu.sh": "create setup launch status watch stop collect delete".split(),
    "gke.sh": "create setup launch status watch stop collect delete manifest".split(),
    "slurm.sh": "setup launch status watch stop collect".split(),
}


@pytest.mark.parametrize("script", VERBS)
def test_dry_run_prints_commands_and_runs_nothing(tmp_path: Path, script: str):
    cloud = Cloud(
        tmp_path, ("mkdir", "chopjax"), NAME="llama", PROJECT="p", ZONE="z", CLUSTER="c",
        CLUSTER_LOCATION="l", IMAGE="i", WORKDIR="/mnt/w", VOLUME_CLAIM="v", MOUNT_PATH="/mnt",
        MOUNT_COMMAND="mount s /mnt", TRAIN_COMMAND="chopjax train --config c.py",
    )  # fmt: skip
    for verb in VERBS[script]:
        done = cloud.run(script, verb, "--dry-run")
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        assert done.stdout
        assert verb in done.stdout or verb not in ("create", "delete")
    where = "here" if script == "slurm.sh" else "elsewhere"
    checked = ["chopjax", "train", "--config", "c.py", "--check", where]
    assert cloud.calls == [checked] * len({"create", "launch", "watch"} & set(VERBS[script]))
    assert not (tmp_path / "runs").exists()


def test_dry_run_lines_can_be_pasted(cloud: Cloud):
    (line,) = cloud.run("tpu.sh", "launch", "--dry-run").stdout.splitlines()
    pasted = subprocess.run(["bash", "-c", line], env=cloud.environment)
    cloud.run("tpu.sh", "launch")
    assert pasted.returncode == 0
    assert cloud.calls[0] == cloud.calls[1]


@pytest.mark.parametrize("script", VERBS)
def test_help_names_every_verb(cloud: Cloud, script: str):
    done = cloud.run(script, "--help")
    assert done.returncode == 0
    assert all(f"\n  {verb} " in done.stdout for verb in VERBS[script])


def test_mistakes_of_the_user(cloud: Cloud, tmp_path: Path):
    def error(*arguments: str) -> str:
        done = cloud.run("tpu.sh", *arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("tpu.sh: error: ")
        return done.stderr

    assert "no verb" in error()
    assert "unknown verb frobnicate" in error("frobnicate")
    assert "unknown flag --dryrun" in error("launch", "--dryrun")
    assert "one verb at a time" in error("launch", "watch")
    for settings, message in [
        ({"PROJECT": "", "ZONE": ""}, "not set: PROJECT ZONE"),
        ({"CAPACITY": "cheap"}, "must be one of: spot on-demand reserved"),
        ({"SLICES": "two"}, "SLICES=two in"),
        ({"GRACE_SECONDS": "4m"}, "a whole number of at least 1 is needed"),
        ({"WORKDIR": "gs://bucket/llama"}, "an absolute path on a file system that every host"),
        ({"NAME": "My_Run"}, "lower-case letters"),
        ({"TRAIN_STORE": "c4"}, "TRAIN_STORE=c4 in"),
        ({"EVALUATION_STORE": "/mnt/a=1,b=2"}, "an absolute path on a file system that every host"),
    ]:
        saved = cloud.settings.read_text()
        more_settings(cloud, **settings)
        assert message in error("launch")
        cloud.settings.write_text(saved)
    cloud.settings.write_text("NAME=x\n")
    assert "lacks WORKDIR TRAIN_STORE" in error("launch")
    cloud.settings.unlink()
    assert "cannot read the settings file" in error("launch")
    assert cloud.calls == []
