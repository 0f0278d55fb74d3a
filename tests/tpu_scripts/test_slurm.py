"""slurm.sh and its batch job against recording stand-ins."""

import subprocess
from pathlib import Path

import pytest
from tpu_scripts.cloud import SCRIPTS, Cloud


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    return Cloud(
        tmp_path,
        ("sbatch", "squeue", "sacct", "scancel", "scontrol", "srun", "rsync"),
        NAME="llama",
        WORKDIR=f"{tmp_path}/work dir",
        TRAIN_COMMAND="chopjax train --config 'my config.py'",
        VENV="/shared/venv",
        PARTITION="gpu",
        POLL_SECONDS="0.01",
        MAX_FAILURES="2",
    )


def submissions(cloud: Cloud) -> int:
    return sum(call[0] == "sbatch" for call in cloud.calls)


def test_launch(cloud: Cloud):
    done = cloud.run("slurm.sh", "launch")
    assert done.returncode == 0, done.stderr
    work = cloud.folder / "work dir"
    assert cloud.calls[-1] == [
        "sbatch", "--job-name=llama", "--nodes=2", "--ntasks-per-node=8", "--gpus-per-task=1",
        "--cpus-per-task=8", "--time=24:00:00", "--signal=TERM@240", "--requeue",
        "--open-mode=append", f"--output={work}/logs/%x-%j.log", f"--chdir={SCRIPTS.parent}",
        "--partition=gpu", f"{SCRIPTS}/slurm_job.sh", "/shared/venv", "240",
        "chopjax train --config 'my config.py'", f"{cloud.folder}/.cache/huggingface/token",
    ]  # fmt: skip
    assert (work / "logs").is_dir()


def test_launch_is_refused_while_one_is_there(cloud: Cloud):
    cloud.reply({"squeue": ["RUNNING\n"]})
    done = cloud.run("slurm.sh", "launch")
    assert done.returncode == 2
    assert "in the queue already: RUNNING" in done.stderr
    assert submissions(cloud) == 0


def test_watch_submits_follows_and_ends(cloud: Cloud):
    cloud.reply(
        {
            "squeue": ["", "", "PENDING\n", "RUNNING\n", "", ""],
            "sacct": ["", "RUNNING\n", "COMPLETED\n"],
        }
    )
    done = cloud.run("slurm.sh", "watch")
    assert done.returncode == 0, done.stderr
    assert submissions(cloud) == 1
    assert "training is done" in done.stderr


def test_watch_submits_again_what_was_lost(cloud: Cloud):
    cloud.reply(
        {"squeue": [""], "sacct": ["NODE_FAIL\n", "TIMEOUT\n", "PREEMPTED\n", "COMPLETED\n"]}
    )
    done = cloud.run("slurm.sh", "watch")
    assert done.returncode == 0, done.stderr
    assert submissions(cloud) == 3


def test_watch_gives_up_after_failures(cloud: Cloud):
    cloud.reply({"squeue": [""], "sacct": ["FAILED\n"]})
    done = cloud.run("slurm.sh", "watch")
    assert done.returncode == 2
    assert submissions(cloud) == 1
    assert "gave up after 2 failures" in done.stderr


def test_watch_leaves_a_cancelled_job(cloud: Cloud):
    cloud.reply({"squeue": [""], "sacct": ["CANCELLED by 1000\n"]})
    done = cloud.run("slurm.sh", "watch")
    assert done.returncode == 2
    assert submissions(cloud) == 0


def test_stop_keeps_the_job_from_coming_back(cloud: Cloud):
    cloud.reply({"--format=%A": ["17\n18\n"]})
    assert cloud.run("slurm.sh", "stop").returncode == 0
    assert cloud.calls[1:] == [
        [name, *arguments, end]
        for id in ("17", "18")
        for name, arguments, end in (
            ("scontrol", ("update", f"JobId={id}"), "Requeue=0"),
            ("scancel", ("--state=PENDING",), id),
            ("scancel", ("--signal=TERM",), id),
        )
    ]


def test_collect_leaves_checkpoints(cloud: Cloud):
    assert cloud.run("slurm.sh", "collect").returncode == 0
    assert cloud.calls == [
        [
            "rsync",
            "--archive",
            "--exclude=checkpoints/",
            f"{cloud.folder}/work dir/",
            "runs/chopjax/",
        ]
    ]


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (75, True), (1, False)])
def test_batch_job_requeues_on_75_only(cloud: Cloud, code: int, requeued: bool):
    cloud.reply({"srun": [{"code": code}]})
    done = subprocess.run(
        [str(SCRIPTS / "slurm_job.sh"), "/shared/venv", "240", "chopjax train; true", ""],
        env={**cloud.environment, "SLURM_JOB_ID": "17"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == code
    assert cloud.calls[0] == [
        "srun", "--kill-on-bad-exit=0", "--wait=240", "bash", "-c", "chopjax train; true",
    ]  # fmt: skip
    assert (["scontrol", "requeue", "17"] in cloud.calls) == requeued


def test_batch_job_finds_the_token(cloud: Cloud):
    token = cloud.folder / "token"
    token.write_text("hf_SECRET")
    cloud.program("srun", f"echo $HF_TOKEN_PATH >{cloud.folder}/seen")
    for file, seen in ((token, str(token)), (cloud.folder / "none", "")):
        command = [str(SCRIPTS / "slurm_job.sh"), "/shared/venv", "240", "x", str(file)]
        assert subprocess.run(command, env=cloud.environment).returncode == 0
        assert (cloud.folder / "seen").read_text().strip() == seen


def test_shared_folder_is_needed(cloud: Cloud):
    with cloud.settings.open("a") as file:
        file.write("WORKDIR=gs://bucket/x\n")
    done = cloud.run("slurm.sh", "launch")
    assert done.returncode == 2
    assert "absolute path" in done.stderr
