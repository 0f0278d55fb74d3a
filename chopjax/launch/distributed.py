"""Which processes make up a run, and joining them by jax.distributed.

Sources, first match wins: the flags --coordinator, --num-processes and --process-id (or
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID); SLURM's srun; a TPU pod, on Kubernetes
by its environment, on Cloud TPU machines by their metadata server. Without any of these there is a
single process, and `joined` does nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import os
import platform
import re
import shlex
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax

from chopjax import __version__
from chopjax.errors import UserError
from chopjax.hardware import has_tpu
from chopjax.launch import preflight
from chopjax.launch.peers import ending_together
from chopjax.launch.preflight import Processes
from chopjax.progress import say

SOFTWARE = {
    "chopjax": __version__,
    "jax": jax.__version__,
    "Python": platform.python_version(),
}
WAIT_SECONDS = 24 * 3600  # a process that is lost ends the wait sooner
_barriers = itertools.count()  # all processes count alike, which makes barriers' names unique
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


@contextlib.contextmanager
def joined(
    launch: Launch = Launch(),
    started_with: Mapping[str, object] | None = None,
    advice: Callable[[], str] = lambda: "",
) -> Iterator[Processes | None]:
    """Join the other processes, and end with them; must begin before anything touches a device.

    started_with: what must be the same in every process, beside the software (preflight.py).
    advice: what to say before how to start again when another process has failed (peers.py).
    Yields who they are, or None for a single process. When not all of them appear within the
    time-out, every process that did start exits with code 2 and says so. Raises UserError, in every
    process, when they were not started alike. While the block runs, a failure of one ends all.
    """
    processes = find(launch, os.environ)
    if processes is None or processes.count == 1:
        yield None
        return
    preflight.start(processes, launch.timeout_seconds)
    preflight.compare(processes, {**SOFTWARE, **(started_with or {})})
    if processes.index == 0:
        say(f"{processes.count} processes ({processes.how}), all there")
    again = f"Unless a watcher of tpu_scripts/ does, start all again:\n{processes.command}"
    store, count, index = preflight.client(), processes.count, processes.index
    with ending_together(store, count, index, lambda: "\n".join(filter(None, [advice(), again]))):
        yield processes


def wait_for_all(what: str) -> None:
    """Returns when every process is here, however long that takes; `what` names the place.

    By jax's coordination service and not by a collective, which on CPUs fails after 30 s.
    """
    if jax.process_count() > 1:
        name = f"chopjax/{next(_barriers)} {what}"
        preflight.client().wait_at_barrier(name, WAIT_SECONDS * 1000)


def find(launch: Launch, environment: Mapping[str, str]) -> Processes | None:
    """The processes of this run, without touching a device; None for a single one."""
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
        elif found := re.fullmatch("--(coordinator|num[-_]processes|process[-_]id)(=.*)?", word):
            skip = not found[2]
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
    found = re.match(r"([^\[,]+)(?:\[([^\],-]+))?", nodes)
    if found is None:
        raise UserError(f"SLURM_STEP_NODELIST={nodes}: no host name in it")
    return found[1] + (found[2] or "")


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
        tuple(hosts) if slices == 1 else (),  # a slice does not know the hosts of the others
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
