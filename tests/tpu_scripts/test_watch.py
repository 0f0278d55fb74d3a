"""tpu.sh watch against a recording stand-in: the watcher's states, failures, Ctrl-C."""

import os
import signal
import time
from typing import Any

import pytest
from tpu_scripts.cloud import ABSENT, DESCRIBE, Cloud, more_settings

STATUS = "remote_job.sh status"


def says(*states: str) -> dict:
    return {"out": "".join(f"chopjax-job: {state}\n" for state in states)}


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
