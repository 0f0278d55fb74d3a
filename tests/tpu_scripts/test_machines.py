"""The machines' side of tpu.sh, run for real in folders that play the machines."""

import json
import os
import signal
import subprocess
import time

import pytest
from tpu_scripts.cloud import ABSENT, DESCRIBE, SCRIPTS, Cloud, more_settings

TRAIN = r"""
trap 'echo saved >> $STORE; exit 75' TERM
echo "started after $(grep -c saved $STORE)" >> $STORE
if grep -q saved $STORE; then sleep 0.3; exit 0; fi
for i in $(seq 400); do sleep 0.05; done
"""


def install(cloud: Cloud) -> None:
    """The programs that `setup` calls on a machine, and training itself."""
    programs = {
        "python3": "exit 0",
        "uv": '[ "$1" != venv ] || { mkdir -p .venv/bin; cp "$STAND_IN/train" .venv/bin/chopjax; }',
        "seq": 'for ((i = 1; i <= $1; i++)); do echo "$i"; done',
    }
    for name, body in programs.items():
        cloud.program(name, body)
    (cloud.folder / "train").write_text(f"#!/bin/bash\nSTORE=$STAND_IN/store\ntouch $STORE{TRAIN}")
    (cloud.folder / "train").chmod(0o755)


def mountable(cloud: Cloud) -> str:
    """A command that 'mounts' the share on the machine it runs on, as `stat` will find."""
    other_device = "if [[ $3 != / && -e $HOME/mounts ]]; then echo 42; else echo 1; fi"
    cloud.program("stat", f'[[ "$1 $2" == "-Lc %d" ]] || exit 1; {other_device}')
    return "echo mounted >>$HOME/mounts"


def test_two_machines_are_preempted_and_training_resumes(cloud: Cloud):
    """The whole watcher against machines that are folders: what is sent there really runs."""
    install(cloud)
    share = cloud.folder / "share"
    share.mkdir()
    more_settings(
        cloud, POLL_SECONDS="0.2", GRACE_SECONDS="10", TRAIN_COMMAND="chopjax train",
        MOUNT_COMMAND=mountable(cloud), WORKDIR=str(share / "llama"),
    )  # fmt: skip
    on_machines = {"machines": True}
    cloud.reply(
        {
            DESCRIBE: [ABSENT, *["ACTIVE\n"] * 4, {"out": "SUSPENDED\n"}, "ACTIVE\n"],
            "create": [{"boot": ["w-0", "w-1"]}],
            "queued-resources delete": [{"lose": True}],
            "ssh llama": [on_machines],
            "scp": [on_machines],
        }
    )
    process = cloud.start("tpu.sh", "watch")
    store = cloud.folder / "store"
    deadline = time.monotonic() + 40
    while not (store.exists() and store.read_text().count("started") == 2):
        assert time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    # Google's SIGTERM to the machines, just before they go.
    for group in cloud.folder.glob("machines/*/chopjax_job/group"):
        os.killpg(int(group.read_text()), signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    assert store.read_text().count("saved") == 2
    assert store.read_text().splitlines()[-1] == "started after 2"
    assert "create" in cloud.story()
    logs = [log.read_text() for log in cloud.folder.glob("machines/*/chopjax_job/train.log")]
    assert len(logs) == 2
    assert all("exit code 0" in log for log in logs)
    mounts = [file.read_text() for file in cloud.folder.glob("machines/*/mounts")]
    assert mounts == ["mounted\n"] * 2  # once on each new machine
    # Its folder here, without the checkpoints.
    (share / "llama/checkpoints/7").mkdir(parents=True)
    (share / "llama/metrics.jsonl").write_text("{}\n")
    done = cloud.run("tpu.sh", "collect")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (cloud.folder / "runs/chopjax").iterdir()) == [
        "logs", "metrics.jsonl",
    ]  # fmt: skip


@pytest.mark.parametrize("held", ["variable", "file"])
def test_token_reaches_training_and_nobody_else(cloud: Cloud, held: str):
    install(cloud)
    secret, told = "hf_SECRET", cloud.folder / "told"
    (cloud.folder / "train").write_text(f'#!/bin/bash\ncp "$HF_TOKEN_PATH" {told}')
    (cloud.folder / "machines/w-0").mkdir()
    share = cloud.folder / "share"
    share.mkdir()
    more_settings(cloud, MOUNT_COMMAND=mountable(cloud), WORKDIR=str(share))
    if held == "file":
        (cloud.folder / "mine").write_text(secret)
        more_settings(cloud, HF_TOKEN_FILE=str(cloud.folder / "mine"))
    else:
        cloud.environment["HF_TOKEN"] = secret
    cloud.reply({"ssh llama": [{"machines": True}], "scp": [{"machines": True}]})
    dry = cloud.run("tpu.sh", "setup", "--dry-run")
    outputs = [dry.stdout, dry.stderr]
    for verb in ("setup", "launch"):
        done = cloud.run("tpu.sh", verb)
        assert done.returncode == 0, done.stderr
        outputs += [done.stdout, done.stderr]
    deadline = time.monotonic() + 20
    state = cloud.folder / "machines/w-0/chopjax_job"
    while not (state / "exit_code").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert told.read_text().strip() == secret
    assert (state / "hf_token").stat().st_mode & 0o777 == 0o600
    assert not (cloud.folder / "machines/w-0/llama-hf-token").exists()
    for text in [*outputs, json.dumps(cloud.calls), (state / "train.log").read_text()]:
        assert secret not in text
    assert list((cloud.folder / "temporary").iterdir()) == []
    # Not to be passed on any more.
    more_settings(cloud, HF_TOKEN_FILE="")
    assert cloud.run("tpu.sh", "setup").returncode == 0
    assert not (state / "hf_token").exists()


@pytest.fixture
def job(cloud: Cloud):
    """remote_job.sh by itself, on this machine."""
    environment = {**cloud.environment, "CHOPJAX_JOB_DIR": str(cloud.folder / "job")}
    mount = mountable(cloud)

    def call(verb: str, *arguments: str) -> subprocess.CompletedProcess:
        if verb == "start" and len(arguments) == 1:
            arguments = (str(cloud.folder / "work"), mount, *arguments)
        return subprocess.run(
            [str(SCRIPTS / "remote_job.sh"), verb, *arguments],
            env=environment, capture_output=True, text=True, timeout=30,
        )  # fmt: skip

    yield call
    call("stop", "0")


def test_job_life(job, cloud: Cloud):
    assert job("status").stdout == "chopjax-job: idle\n"
    assert job("stop", "1").returncode == 0
    assert job("start", "trap 'exit 75' TERM; for ((;;)); do sleep 0.05; done").returncode == 0
    assert job("status").stdout == "chopjax-job: running\n"
    second = job("start", "true")
    assert second.returncode == 1
    assert "already runs" in second.stderr
    assert job("stop", "10").returncode == 0
    assert job("status").stdout == "chopjax-job: exit 75\n"
    job("start", "echo hello; exit 3")
    deadline = time.monotonic() + 10
    while job("status").stdout == "chopjax-job: running\n" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert job("status").stdout == "chopjax-job: exit 3\n"
    assert "hello" in job("tail").stdout


def test_job_that_does_not_save_in_time_is_killed(job):
    job("start", "trap '' TERM; for ((;;)); do sleep 0.05; done")
    stopped = job("stop", "1")
    assert "killed" in stopped.stderr
    assert job("status").stdout == "chopjax-job: exit 137\n"


def test_share_is_mounted_once_and_again_after_a_restart(job, cloud: Cloud):
    share = (f"{cloud.folder}/share/runs/llama", "echo mounted >>$HOME/mounts")
    mounts = cloud.folder / "mounts"
    for _ in range(2):
        assert job("mount", *share).returncode == 0
        assert mounts.read_text() == "mounted\n"
    assert (cloud.folder / "share/runs/llama/logs").is_dir()
    mounts.unlink()  # restarted: the folders are there still, on the machine's own disk
    assert job("start", *share, "true").returncode == 0
    assert mounts.read_text() == "mounted\n"
    assert job("log", *share).returncode == 0
    assert mounts.read_text() == "mounted\n"
    assert len(list((cloud.folder / "share/runs/llama/logs").iterdir())) == 1


@pytest.mark.parametrize(
    ("mount", "message"),
    [
        ("echo no such server >&2; exit 32", "MOUNT_COMMAND failed with exit code 32: echo no"),
        ("true", "own disk: nothing is mounted there (MOUNT_COMMAND: true)"),
        ("", "own disk: nothing is mounted there (MOUNT_COMMAND: not set)"),
        ("touch $HOME/mounts $HOME/share", "cannot write to WORKDIR="),
    ],
)
def test_training_does_not_start_without_its_share(job, cloud: Cloud, mount: str, message: str):
    done = job("start", f"{cloud.folder}/share/llama", mount, "touch $HOME/ran")
    assert done.returncode == 1
    assert message in done.stderr
    assert job("status").stdout == "chopjax-job: idle\n"
    assert not (cloud.folder / "ran").exists()
    assert not (cloud.folder / "share/llama").exists()
