"""For tests with several processes on this machine: a port for them, and their end."""

import socket
import subprocess

from chopjax.errors import UserError
from chopjax.launch.distributed import check_port


def free_port() -> int:
    """A port of 127.0.0.1 that is free on every interface."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        try:
            check_port(port)
        except UserError:
            continue
        return port


def finish(processes: list[subprocess.Popen], timeout: float = 600) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each; those that hang (seconds, each) are killed."""
    ended = []
    for process in processes:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
        ended.append((process.returncode, out, err))
    return ended
