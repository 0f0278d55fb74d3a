"""tpu.sh against a recording stand-in: exact calls, the watcher's states, failures, Ctrl-C."""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tpu_scripts.cloud import SCRIPTS, Cloud

from chopjax.commands import train
from chopjax.train.config_file import load_config
from chopjax.train.settings import read

WHERE = ["--project=my-project", "--zone=us-east5-a"]
QUEUED = ["gcloud", "compute", "tpus", "queued-resources"]
FIRST = ["--node=0", "--worker=0"]
EVERYWHERE = ["--node=all", "--worker=all", "--batch-size=all"]
DESCRIBE = "queued-resources describe"
STATUS = "remote_job.sh status"
ABSENT = {"code": 1, "err": "ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: x\n"}


def says(*states: str) -> dict:
    return {"out": "".join(f"chopjax-job: {state}\n" for state in states)}


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    return Cloud(
        tmp_path,
        ("gcloud",),
        NAME="llama",
        PROJECT="my-project",
        ZONE="us-east5-a",
        WORKDIR="/mnt/share/llama",
        MOUNT_COMMAND="sudo mount share /mnt/share",
        TRAIN_COMMAND="chopjax train --config 'my config.py' --workdir /mnt/share/llama",
        POLL_SECONDS="0.01",
        MAX_FAILURES="3",
    )


def more_settings(cloud: Cloud, **settings: str) -> None:
    with cloud.settings.open("a") as file:
        file.writelines(f"{name}='{value}'\n" for name, value in settings.items())


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


# ---- the command that is shipped -----------------------------------------------------------------


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


# ---- watch ---------------------------------------------------------------------------------------


def test_watch_from_nothing_to_done(cloud: Cloud):
    cloud.reply(
        {
            DESCRIBE: [ABSENT, "WAITING_FOR_RESOURCES\n", "ACTIVE\n"],
            STATUS: [says("bare", "bare"), says("running", "running"), says("exit 0", "exit 0")],
        }
    )
    done = cloud.run("tpu.sh", "watch")
    assert done.returncode == 0, done.stderr
    assert cloud.story() == ["create", "scp", "setup", "stop", "start"]
    assert "training is done" in done.stderr


@pytest.mark.parametrize("lost", ["SUSPENDED", "node PREEMPTED"])
def test_watch_recreates_and_resumes_after_preemption(cloud: Cloud, lost: str):
    replies: dict[str, list[Any]] = {
        DESCRIBE: ["ACTIVE\n", "SUSPENDING\n", "SUSPENDED\n", "PROVISIONING\n", "ACTIVE\n"],
        STATUS: [says("running", "running"), says("bare", "bare"), says("exit 0", "exit 0")],
    }
    if lost == "node PREEMPTED":  # the queued resource still says ACTIVE
        replies[DESCRIBE] = ["ACTIVE\n"]
        replies["tpu-vm list"] = ["READY\n", "READY\nPREEMPTED\n", "READY\n"]
    cloud.reply(replies)
    done = cloud.run("tpu.sh", "watch")
    assert done.returncode == 0, done.stderr
    assert cloud.story() == ["delete", "create", "scp", "setup", "stop", "start"]
    assert "failure" not in done.stderr


def test_watch_starts_again_on_75_without_counting(cloud: Cloud):
    saved = [says("exit 75", "exit 75"), says("exit 75", "running"), says("running", "idle")]
    cloud.reply({DESCRIBE: ["ACTIVE\n"], STATUS: [*saved, *saved, says("exit 0", "exit 0")]})
    done = cloud.run("tpu.sh", "watch")
    assert done.returncode == 0, done.stderr
    assert cloud.story() == ["stop", "start"] * 6
    assert "failure" not in done.stderr


def test_watch_gives_up_after_failures_and_shows_the_log(cloud: Cloud):
    cloud.reply(
        {
            DESCRIBE: ["ACTIVE\n"],
            STATUS: [says("exit 1", "running")],
            "remote_job.sh tail": ["w-0: ValueError: no such thing\n"],
        }
    )
    done = cloud.run("tpu.sh", "watch")
    assert done.returncode == 2
    assert cloud.story() == ["tail", "stop", "start"] * 2 + ["tail"]
    assert "no such thing" in done.stdout
    assert "gave up after 3 failures" in done.stderr


def test_a_crash_just_before_a_preemption_is_no_failure(cloud: Cloud):
    cloud.reply(
        {
            DESCRIBE: ["ACTIVE\n", "SUSPENDING\n", "SUSPENDED\n", "ACTIVE\n"],
            STATUS: [says("exit 134", "running"), says("exit 0")],
        }
    )
    done = cloud.run("tpu.sh", "watch")
    assert done.returncode == 0, done.stderr
    assert cloud.story() == ["delete", "create"]


def test_watch_counts_requests_that_fail(cloud: Cloud):
    cloud.reply({DESCRIBE: ["FAILED\n"]})
    done = cloud.run("tpu.sh", "watch")
    assert done.returncode == 2
    assert cloud.story() == ["delete", "create"] * 2


def test_watch_survives_a_gcloud_that_fails_now_and_then(cloud: Cloud):
    broken = {"code": 1, "err": "ERROR: network is unreachable\n"}
    cloud.reply(
        {
            DESCRIBE: [broken, "ACTIVE\n", broken, broken, "ACTIVE\n"],
            STATUS: [{"code": 255, "err": "ssh: timeout\n"}, says("running"), says("exit 0")],
        }
    )
    done = cloud.run("tpu.sh", "watch")
    assert done.returncode == 0, done.stderr
    assert cloud.story() == []
    cloud.reply({DESCRIBE: [broken]})
    done = cloud.run("tpu.sh", "watch")
    assert done.returncode == 2
    assert "gcloud failed 10 times in a row" in done.stderr


def test_watch_stops_when_the_machines_never_answer(cloud: Cloud):
    cloud.reply({DESCRIBE: ["ACTIVE\n"], STATUS: [{"code": 255, "err": "ssh: timeout\n"}]})
    done = cloud.run("tpu.sh", "watch")
    assert done.returncode == 2
    assert "do not answer to ssh" in done.stderr


def test_watch_stops_when_the_request_is_refused(cloud: Cloud):
    cloud.reply({DESCRIBE: [ABSENT], "create": [{"code": 1, "err": "ERROR: PERMISSION_DENIED\n"}]})
    done = cloud.run("tpu.sh", "watch")
    assert done.returncode == 2
    assert "PERMISSION_DENIED" in done.stderr


def test_ctrl_c_says_what_goes_on(cloud: Cloud):
    more_settings(cloud, POLL_SECONDS="30")
    cloud.reply({DESCRIBE: ["ACTIVE\n"], STATUS: [says("running")]})
    process = cloud.start("tpu.sh", "watch")
    deadline = time.monotonic() + 20
    while not any("status" in call[-1] for call in cloud.calls) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "go on and are billed. 'tpu.sh watch' resumes" in err
    assert cloud.story() == []


# ---- the machines' side, for real ----------------------------------------------------------------

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
