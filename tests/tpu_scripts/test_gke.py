"""gke.sh against recording stand-ins, and the JobSet that it writes."""

import json
from pathlib import Path

import pytest
import yaml
from tpu_scripts.cloud import Cloud

GET = "get jobset"
MISSING = {"code": 1, "err": 'Error from server (NotFound): jobsets "llama" not found\n'}


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    cloud = Cloud(
        tmp_path,
        ("gcloud", "kubectl", "docker"),
        NAME="llama",
        PROJECT="my-project",
        ZONE="us-east5-a",
        CLUSTER="pod",
        CLUSTER_LOCATION="us-east5",
        IMAGE="us-docker.pkg.dev/p/r/chopjax:v1",
        WORKDIR="/mnt/share/llama",
        VOLUME_CLAIM="disk",
        MOUNT_PATH="/mnt/share",
        TRAIN_COMMAND="export A='x y'\nchopjax train --workdir /mnt/share/llama",
        SLICES="2",
        POLL_SECONDS="0.01",
    )
    cloud.reply({"apply -f -": [{"stdin": True}]})
    return cloud


def jobset(cloud: Cloud) -> dict:
    done = cloud.run("gke.sh", "manifest")
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def test_create_setup_launch_collect_delete(cloud: Cloud):
    cloud.program("tar", 'echo "$@" > tar_was_called')
    (cloud.folder / "runs/chopjax").mkdir(parents=True)
    (cloud.folder / "runs/chopjax/llama-workdir.tar.gz").touch()  # what cp would bring
    for verb in ("create", "setup", "launch", "collect", "delete"):
        done = cloud.run("gke.sh", verb)
        assert done.returncode == 0, done.stderr
    cluster = ["--cluster=pod", "--location=us-east5", "--project=my-project"]
    pools = ["gcloud", "container", "node-pools"]
    machines = ["--node-locations=us-east5-a", "--machine-type=ct5p-hightpu-4t", "--num-nodes=16",
                "--tpu-topology=4x4x4", "--spot"]  # fmt: skip
    kubectl = ["kubectl", "--namespace=default"]
    calls = cloud.calls
    assert calls[:2] == [
        [*pools, "create", f"llama-{slice}", *cluster, *machines] for slice in (0, 1)
    ]
    assert [call[:2] for call in calls[2:8]] == [
        ["gcloud", "container"], kubectl, kubectl, ["kubectl", "apply"],
        ["docker", "build"], ["docker", "push"],
    ]  # fmt: skip
    assert calls[3] == [*kubectl, "get", "persistentvolumeclaim", "disk"]
    no_token = [*kubectl, "delete", "secret", "llama-hf-token", "--ignore-not-found"]
    assert calls.pop(4) == no_token
    assert calls[7] == [*kubectl, "apply", "-f", "-"]
    assert yaml.safe_load((cloud.folder / "stdin").read_text()) == jobset(cloud)
    assert calls[8][2] == "logs"
    overrides = calls[10].pop().removeprefix("--overrides=")
    archive, collector = "llama-workdir.tar.gz", [*kubectl, "delete", "pod", "llama-collect"]
    pack = f"tar -czf /tmp/{archive} --exclude=checkpoints -C /mnt/share/llama . || [ $? = 1 ]"
    assert calls[9:15] == [
        [*collector, "--ignore-not-found"],
        [*kubectl, "run", "llama-collect", "--image=us-docker.pkg.dev/p/r/chopjax:v1",
         "--restart=Never"],
        [*kubectl, "wait", "pod/llama-collect", "--for=condition=Ready", "--timeout=300s"],
        [*kubectl, "exec", "llama-collect", "--", "bash", "-c", pack],
        [*kubectl, "cp", f"llama-collect:/tmp/{archive}", f"runs/chopjax/{archive}",
         "--retries=10"],
        [*collector, "--ignore-not-found", "--wait=false"],
    ]  # fmt: skip
    pod = json.loads(overrides)["spec"]
    assert pod["volumes"] == [{"name": "share", "persistentVolumeClaim": {"claimName": "disk"}}]
    assert pod["containers"][0]["volumeMounts"] == [{"name": "share", "mountPath": "/mnt/share"}]
    unpacked = (cloud.folder / "tar_was_called").read_text()
    assert unpacked == f"-xzf runs/chopjax/{archive} -C runs/chopjax\n"
    assert calls[15] == [
        *kubectl, "delete", "jobset", "llama", "--ignore-not-found", "--cascade=foreground",
    ]  # fmt: skip
    assert calls[16] == no_token
    assert calls[17:] == [
        [*pools, "delete", f"llama-{slice}", *cluster, "--quiet"] for slice in (0, 1)
    ]


def test_manifest(cloud: Cloud):
    spec = jobset(cloud)["spec"]
    (replicated,) = spec["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert replicated["replicas"] == 2
    assert job["parallelism"] == job["completions"] == 16
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "4x4x4",
        "cloud.google.com/gke-spot": "true",
    }
    assert container["command"] == ["bash", "-c"]
    assert container["args"] == ["export A='x y'\nchopjax train --workdir /mnt/share/llama\n"]
    assert pod["volumes"] == [{"name": "share", "persistentVolumeClaim": {"claimName": "disk"}}]
    assert container["volumeMounts"] == [{"name": "share", "mountPath": "/mnt/share"}]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    (token,) = container["env"]
    assert token["name"] == "HF_TOKEN"
    secret = {"name": "llama-hf-token", "key": "token", "optional": True}
    assert token["valueFrom"] == {"secretKeyRef": secret}
    assert "serviceAccountName" not in pod


def test_token_becomes_a_secret_and_no_metadata(cloud: Cloud):
    cloud.environment["HF_TOKEN"] = "hf_SECRET"
    cloud.program(
        "kubectl",
        '''
        path=${!#}
        [[ "$*" != *from-file* ]] || cat "${path#--from-file=token=}" >"$STAND_IN/got"
        echo "$@" >>"$STAND_IN/kubectl"''',
    )
    done = cloud.run("gke.sh", "setup")
    assert done.returncode == 0, done.stderr
    assert (cloud.folder / "got").read_text() == "hf_SECRET\n"
    asked = (cloud.folder / "kubectl").read_text()
    assert "create secret generic llama-hf-token --from-file=token=" in asked
    assert "hf_SECRET" not in asked + done.stdout + done.stderr
    assert list((cloud.folder / "temporary").iterdir()) == []


def test_stores_lie_on_the_volume(cloud: Cloud):
    for store, code in (("/mnt/share/a=1,gs://b/c=2", 0), ("/mnt/share/a=1,/mnt/b=2", 2)):
        with cloud.settings.open("a") as file:
            file.write(f"TRAIN_STORE={store}\n")
        done = cloud.run("gke.sh", "launch")
        assert done.returncode == code, done.stderr
    assert "/mnt/b, a token store in" in done.stderr


def test_75_restarts_without_limit_and_other_failures_are_counted(cloud: Cloud):
    spec = jobset(cloud)["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    saved, disrupted = job["podFailurePolicy"]["rules"]
    assert saved["action"] == disrupted["action"] == "FailJob"
    assert saved["onExitCodes"]["values"] == [75]
    assert disrupted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    # podFailurePolicy needs restartPolicy Never (Kubernetes API, Job).
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    assert job["backoffLimit"] == 0
    (rule,) = spec["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert spec["failurePolicy"]["maxRestarts"] == 5


def test_on_demand_with_a_service_account(cloud: Cloud):
    with cloud.settings.open("a") as file:
        file.write("CAPACITY=on-demand\nKUBERNETES_SERVICE_ACCOUNT=trainer\n")
    pod = jobset(cloud)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == "trainer"
    assert "cloud.google.com/gke-spot" not in pod["nodeSelector"]


def test_watch_launches_and_follows_restarts(cloud: Cloud):
    cloud.reply({GET: [MISSING, ";", ";1", {"code": 1, "err": "timeout\n"}, "Completed ;1"]})
    done = cloud.run("gke.sh", "watch")
    assert done.returncode == 0, done.stderr
    assert sum("apply" in call for call in cloud.calls) == 1
    assert "training is done" in done.stderr


def test_watch_tells_of_failure(cloud: Cloud):
    cloud.reply({GET: ["Failed ;5"]})
    done = cloud.run("gke.sh", "watch")
    assert done.returncode == 2
    assert "failed more than 5 times" in done.stderr


def test_watch_gives_up_on_a_cluster_that_does_not_answer(cloud: Cloud):
    cloud.reply({GET: [{"code": 1, "err": "Unable to connect to the server\n"}]})
    done = cloud.run("gke.sh", "watch")
    assert done.returncode == 2
    assert "Unable to connect" in done.stderr
    assert len(cloud.calls) == 10


def test_collect_that_fails_takes_its_pod_away(cloud: Cloud):
    cloud.reply({" wait ": [{"code": 1, "err": "timed out waiting for the condition\n"}]})
    done = cloud.run("gke.sh", "collect")
    assert done.returncode == 1
    assert "timed out" in done.stderr
    assert cloud.calls[-1][2:4] == ["delete", "pod"]


@pytest.mark.parametrize("path", ["/mnt/other", "/mnt/sha", "mnt", "/mnt/share/llama/x"])
def test_workdir_lies_on_the_volume(cloud: Cloud, path: str):
    with cloud.settings.open("a") as file:
        file.write(f"MOUNT_PATH={path}\n")
    done = cloud.run("gke.sh", "launch")
    assert done.returncode == 2
    assert "that WORKDIR=/mnt/share/llama begins with" in done.stderr
    assert cloud.calls == []
