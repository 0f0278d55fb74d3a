"""Ports for tests with several processes on this machine."""

import socket

from chopjax.errors import UserError
from chopjax.train.preflight import listen


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
