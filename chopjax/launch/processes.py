"""Which processes make up a run. No device is touched.

Sources, first match wins: the flags --coordinator, --num-processes and --process-id (or
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID); SLURM's srun; a TPU pod, on Kubernetes
by its environment, on Cloud TPU machines by their metadata server. Without any of these there is a
single process.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex
import sys
import urllib.request
from collections.abc import Mapping, Sequence

from chopjax.errors import UserError
from chopjax.hardware import has_tpu

TPU_PORT = 8482  # the port that jax itself takes on TPU pods
FLAGS = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}


@dataclasses.dataclass(frozen=True)
class Launch:
    """The command line's flags about processes; None where a flag was not given."""

    coordinator: str | None = None  # HOST:PORT of process 0
    num_processes: int | None = None
    process_id: int | None = None
    timeout_seconds: float = 300.0  # for all processes to appear


def launch_of(args: argparse.Namespace) -> Launch:
    """The parsed flags of `add_processes` (commands/flags.py)."""
    return Launch(args.coordinator, args.num_processes, args.process_id, args.start_timeout)


@dataclasses.dataclass(frozen=True)
class Processes:
    """The processes of one run, as one of them sees them."""

    coordinator: str  # HOST:PORT of process 0
    count: int
    index: int  # which of them this is
    how: str  # where this was read, for messages: "flags", "SLURM", …
    command: str  # starts all of them; may have several lines

    @property
    def port(self) -> int:
        return int(self.coordinator.rpartition(":")[2])


def find(launch: Launch, environment: Mapping[str, str]) -> Processes | None:
    """The processes of this run, None for a single one."""
    platforms = environment.get("JAX_PLATFORMS") or "tpu"
    return (
        _by_flags(launch, environment)
        or _by_slurm(environment)
        or (_by_tpu(environment) if "tpu" in platforms else None)
    )


def _command() -> list[str]:
    """This command line without the flags about processes."""
    words, skip = ["chopjax"], False
    for word in sys.argv[1:]:
        if skip:
            skip = False
        elif match := re.fullmatch("--(coordinator|num[-_]processes|process[-_]id)(=.*)?", word):
            skip = not match[2]
        else:
            words.append(word)
    return words


# ---- plain addresses -----------------------------------------------------------------------------


def _by_flags(launch: Launch, environment: Mapping[str, str]) -> Processes | None:
    given = {name: getattr(launch, name) for name in FLAGS}
    for name, variable in FLAGS.items():
        if given[name] is None and variable in environment:
            given[name] = environment[variable]
    if all(value is None for value in given.values()):
        return None
    missing = [name for name, value in given.items() if value is None]
    if missing:
        flags = ", ".join(f"--{name.replace('_', '-')} (or {FLAGS[name]})" for name in missing)
        raise UserError(f"{flags} is missing: the three flags about processes go together")
    address = str(given["coordinator"])
    if not re.fullmatch(r"[^:\s]+:\d{1,5}|\[[0-9a-fA-F:.]+\]:\d{1,5}", address):
        raise UserError(f"--coordinator {address}: write HOST:PORT, for example 10.0.0.1:8482")
    if not 0 < int(address.rpartition(":")[2]) <= 65535:
        raise UserError(f"--coordinator {address}: the port must lie between 1 and 65535")
    try:
        count, index = int(given["num_processes"]), int(given["process_id"])
    except ValueError as error:
        raise UserError(f"JAX_NUM_PROCESSES and JAX_PROCESS_ID must be numbers: {error}") from error
    if not 0 <= index < count:
        raise UserError(f"--process-id {index}: there are {count} processes, 0 to {count - 1}")
    shown = min(count, 16)
    lines = [
        shlex.join([*_command(), "--coordinator", address, "--num-processes", str(count),
                    "--process-id", str(i)])
        for i in range(shown)
    ]  # fmt: skip
    if shown < count:
        lines.append(f"… and so on, up to --process-id {count - 1}")
    return Processes(address, count, index, "flags", "\n".join(lines))


# ---- SLURM ---------------------------------------------------------------------------------------


def _by_slurm(environment: Mapping[str, str]) -> Processes | None:
    # SLURM_STEP_NODELIST is set by srun only, not in the batch script itself.
    needed = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID")
    if any(name not in environment for name in needed):
        return None
    job, nodes, count, index = (environment[name] for name in needed)
    port = 61440 + int(job) % 4095  # above the ephemeral ones
    command = shlex.join(["srun", f"--ntasks={count}", *_command()])
    return Processes(f"{first_node(nodes)}:{port}", int(count), int(index), "SLURM", command)


def first_node(nodes: str) -> str:
    """node[007-010,12],gpu1 → node007 (SLURM's list of hosts)."""
    match = re.match(r"([^\[,]+)(?:\[([^\],-]+))?", nodes)
    if match is None:
        raise UserError(f"SLURM_STEP_NODELIST={nodes}: no host name in it")
    return match[1] + (match[2] or "")


# ---- TPU pods ------------------------------------------------------------------------------------


def _by_tpu(environment: Mapping[str, str]) -> Processes | None:
    workers = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    if workers and "TPU_WORKER_ID" in environment:
        return _pod(
            [address.split(":")[0] for address in workers.split(",")],
            int(environment["TPU_WORKER_ID"]),
            environment,
            "TPU pod on Kubernetes",
            "tpu_scripts/gke.sh launch",
        )
    if "TPU_SKIP_MDS_QUERY" in environment or not has_tpu():
        return None
    endpoints = _metadata(environment, "worker-network-endpoints")
    number = _metadata(environment, "agent-worker-number")
    if endpoints is None or number is None:
        return None
    # Two formats: host names alone, or name:id:address.
    hosts = [endpoint.split(":")[-1] for endpoint in endpoints.split(",")]
    about = dict(
        re.findall(r"^\s*(\w+):\s*'?(.*?)'?\s*$", _metadata(environment, "tpu-env") or "", re.M)
    )
    run = shlex.join(_command())
    node, zone = about.get("NODE_ID", "NAME"), about.get("ZONE", "ZONE")
    command = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", node, f"--zone={zone}"]
    command += ["--worker=all", f"--command={run}"]
    return _pod(hosts, int(number), about, "TPU pod", shlex.join(command))


def _pod(
    hosts: Sequence[str], worker: int, about: Mapping[str, str], how: str, command: str
) -> Processes:
    """Processes are numbered slice by slice, one a host, as jax numbers them."""
    slices = int(about.get("MEGASCALE_NUM_SLICES") or 1)
    index = int(about.get("MEGASCALE_SLICE_ID") or 0) * len(hosts) + worker
    first = (about.get("MEGASCALE_COORDINATOR_ADDRESS") or hosts[0]).split(":")[0]
    if slices > 1:
        how += f" of {slices} slices"
    return Processes(
        f"{first}:{TPU_PORT}",
        slices * len(hosts),
        index,
        how,
        command,
    )


def _metadata(environment: Mapping[str, str], key: str) -> str | None:
    """An attribute of this machine from Google's metadata server; None without one."""
    host = environment.get("GCE_METADATA_IP", "metadata.google.internal")
    request = urllib.request.Request(
        f"http://{host}/computeMetadata/v1/instance/attributes/{key}",
        headers={"Metadata-Flavor": "Google"},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return str(response.read().decode())
    except OSError:
        return None
