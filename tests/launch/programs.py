"""Small programs that run as several processes of one run, on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence

from launch.ports import free_port

PROGRAM = textwrap.dedent("""
    import os, sys, time
    import jax
    from chopjax import interrupts
    from chopjax.errors import UserError
    from chopjax.launch import distributed
    from chopjax.launch.distributed import EXIT_PREEMPTED, joined, wait_for_all
    from chopjax.launch.processes import Launch

    distributed.HEARTBEAT_SECONDS = int(sys.argv[4])

    def gather(value):
        import numpy as np
        from jax.experimental import multihost_utils
        return multihost_utils.process_allgather(np.int32(value)).tolist()

    def main():
        launch, started_with = Launch(timeout_seconds=float(sys.argv[1])), eval(sys.argv[2])
        with joined(launch, started_with, lambda: "checkpoint 7 is good"):
            jax.devices()
            wait_for_all("devices")  # a collective waits for the others for half a minute only
            seen = gather(int(os.environ["JAX_PROCESS_ID"]))
            wait_for_all("test")
            print("in", seen, flush=True)
            exec(sys.argv[3])

    with interrupts.program("test"):
        try:
            main()
        except UserError as error:
            print(f"own error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            interrupts.end()
""")


def start(
    actions: Sequence[str],
    started_with: Sequence[dict[str, object]] | None = None,
    *,
    count: int | None = None,
    indices: Sequence[int] | None = None,
    seconds: float = 600,
    heartbeat: int = 60,
) -> list[subprocess.Popen]:
    """Processes that join one another and then each do what `actions` says for them.

    started_with: of each process. count: of the processes that each expects. indices: of those that
    start. seconds: for all to appear. heartbeat: seconds of silence that jax takes for the end.
    """
    indices = range(len(actions)) if indices is None else indices
    given = started_with or [{}] * len(actions)
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "JAX_NUM_PROCESSES": str(count or len(actions)),
    }
    return [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                PROGRAM,
                str(seconds),
                repr(given[place]),
                actions[place],
                str(heartbeat),
            ],
            env=environment | {"JAX_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for place, index in enumerate(indices)
    ]


def wait_until_in(processes: Sequence[subprocess.Popen]) -> None:
    """Until all have joined and seen each other."""
    everyone = list(range(len(processes)))
    for process in processes:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        assert any(line == f"in {everyone}\n" for line in lines)  # gloo mutters as well
