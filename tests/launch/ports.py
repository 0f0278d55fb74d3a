"""For tests with several processes on this machine: a port for them, and their end."""

import socket
import subprocess

from chopjax.errors import UserError
from chopjax.launch.preflight import listen


def free_port() -> int:
    """A free even port whose successor is free too."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1] & ~1
        try:
            listen(port).close()
            listen(port + 1).close()
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
