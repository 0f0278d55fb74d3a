"""Finding the processes of a run in every environment."""

import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from launch.ports import free_port

from chopjax.errors import UserError
from chopjax.launch import processes as finding
from chopjax.launch.distributed import joined
from chopjax.launch.processes import Launch, Processes, find, first_node


def found(launch: Launch, environment: Mapping[str, str]) -> Processes:
    processes = find(launch, environment)
    assert processes is not None
    return processes


@pytest.fixture(autouse=True)
def command_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["chopjax", "train", "--config", "my config.py"])


def test_alone():
    assert find(Launch(), {}) is None
    with joined(Launch()) as processes:
        assert processes is None


# ---- plain addresses -----------------------------------------------------------------------------


def test_flags_and_environment():
    by_flags = found(Launch("10.0.0.1:8000", 3, 1), {})
    variables = {
        "JAX_COORDINATOR_ADDRESS": "10.0.0.1:8000",
        "JAX_NUM_PROCESSES": "3",
        "JAX_PROCESS_ID": "1",
    }
    assert find(Launch(), variables) == by_flags
    assert (by_flags.coordinator, by_flags.port) == ("10.0.0.1:8000", 8000)
    assert (by_flags.count, by_flags.index) == (3, 1)
    assert by_flags.command.splitlines() == [
        "chopjax train --config 'my config.py' --coordinator 10.0.0.1:8000 --num-processes 3 "
        f"--process-id {i}"
        for i in range(3)
    ]


def test_flags_are_not_repeated_in_the_command(monkeypatch: pytest.MonkeyPatch):
    given = ["--coordinator=a:1", "--num-processes", "2", "--process-id", "0", "--workdir", "w"]
    monkeypatch.setattr(sys, "argv", ["chopjax", "train", *given])
    first, second = found(Launch("a:1", 2, 0), {}).command.splitlines()
    assert first == "chopjax train --workdir w --coordinator a:1 --num-processes 2 --process-id 0"
    assert second.endswith("--process-id 1")


def test_ipv6():
    assert found(Launch("[fe80::1]:8000", 2, 1), {}).port == 8000


@pytest.mark.parametrize(
    ("launch", "message"),
    [
        (Launch("a:1"), r"--num-processes .*, --process-id .* is missing"),
        (Launch("a", 2, 0), "write HOST:PORT"),
        (Launch("a:65536", 2, 0), "between 1 and 65535"),
        (Launch("a:1", 2, 2), "there are 2 processes, 0 to 1"),
    ],
)
def test_mistakes(launch: Launch, message: str):
    with pytest.raises(UserError, match=message):
        find(launch, {})


def test_port_of_the_coordinator_in_use():
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        with (
            pytest.raises(UserError, match=f"cannot listen on port {port}"),
            joined(Launch(f"127.0.0.1:{port}", 2, 0, timeout_seconds=1)),
        ):
            pass


# ---- SLURM ---------------------------------------------------------------------------------------

SLURM = {
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_NODELIST": "gpu[007-010,12],other3",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "9",
}


def test_slurm():
    processes = found(Launch(), SLURM)
    assert (processes.count, processes.index) == (16, 9)
    assert processes.command == "srun --ntasks=16 chopjax train --config 'my config.py'"
    for job in range(123456, 123456 + 3000, 7):
        assert found(Launch(), SLURM | {"SLURM_JOB_ID": str(job)}).coordinator.startswith("gpu007:")
        assert 61440 <= found(Launch(), SLURM | {"SLURM_JOB_ID": str(job)}).port < 65535


def test_slurm_batch_script_is_no_step():
    assert find(Launch(), {k: v for k, v in SLURM.items() if k != "SLURM_STEP_NODELIST"}) is None


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("a", "a"), ("a,b", "a"), ("n[001-15],h", "n001"), ("n[3,7-9]", "n3"), ("x-1,x-2", "x-1")],
)
def test_first_node(nodes: str, first: str):
    assert first_node(nodes) == first


# ---- TPU pods ------------------------------------------------------------------------------------


def test_pod_on_kubernetes():
    pod = {"TPU_WORKER_HOSTNAMES": "w0.x,w1.x", "TPU_WORKER_ID": "1"}
    processes = found(Launch(), pod)
    assert processes.coordinator == "w0.x:8482"
    assert (processes.count, processes.index) == (2, 1)
    assert find(Launch(), pod | {"JAX_PLATFORMS": "cpu"}) is None


def test_slices_on_kubernetes():
    about = {
        "TPU_WORKER_HOSTNAMES": "w0,w1",
        "TPU_WORKER_ID": "1",
        "MEGASCALE_NUM_SLICES": "3",
        "MEGASCALE_SLICE_ID": "2",
        "MEGASCALE_COORDINATOR_ADDRESS": "slice0-w0:8080",
    }
    processes = found(Launch(), about)
    assert processes.coordinator == "slice0-w0:8482"
    assert (processes.count, processes.index) == (6, 5)


METADATA = {
    "worker-network-endpoints": "unknown:unknown:10.0.0.2,unknown:unknown:10.0.0.3",
    "agent-worker-number": "1",
    "tpu-env": "ACCELERATOR_TYPE: 'v5p-16'\nNODE_ID: 'llama'\nZONE: 'us-east5-a'\n",
}


@pytest.fixture
def metadata_server() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            value = METADATA.get(self.path.rpartition("/")[2])
            self.send_response(200 if value and self.headers["Metadata-Flavor"] else 404)
            self.end_headers()
            self.wfile.write((value or "").encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_pod_of_cloud_tpu_machines(metadata_server: str, monkeypatch: pytest.MonkeyPatch):
    environment = {"GCE_METADATA_IP": metadata_server}
    assert find(Launch(), environment) is None  # no TPU in this machine: nothing is asked
    monkeypatch.setattr(finding, "has_tpu", lambda: True)
    processes = found(Launch(), environment)
    assert processes.coordinator == "10.0.0.2:8482"
    assert (processes.count, processes.index) == (2, 1)
    assert processes.command == (
        "gcloud compute tpus tpu-vm ssh llama --zone=us-east5-a --worker=all "
        "'--command=chopjax train --config '\"'\"'my config.py'\"'\"''"
    )


def test_a_tpu_machine_whose_metadata_server_is_silent(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(finding, "has_tpu", lambda: True)
    assert find(Launch(), {"GCE_METADATA_IP": f"127.0.0.1:{free_port()}"}) is None
