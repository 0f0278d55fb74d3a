"""Work that the first of several processes leads: it decides, and all of them compute.

Before the first process runs a program it sends the others what that is, who wait in `follow`; then
all launch the same program over the mesh, and what that gives is whole on every process. With a
single process nothing is sent and nothing waits. When the first process fails, the others end with
it (distributed.py).
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

END = "end"  # the message after which the others stop following


def send(kind: str, *content: Any) -> None:
    """The first process to all others: what comes next. Nothing happens in a single process."""
    if jax.process_count() == 1 or jax.process_index() != 0:
        return
    data = np.frombuffer(pickle.dumps((kind, content)), np.uint8)
    multihost_utils.broadcast_one_to_all(np.int64(len(data)))
    multihost_utils.broadcast_one_to_all(data)


def follow(kinds: dict[str, Callable[..., Any]]) -> None:
    """What a process that is not the first does: whatever it is told, until END.

    kinds: what to call for each kind of message.
    """
    while True:
        size = int(multihost_utils.broadcast_one_to_all(np.int64(0)))
        data = multihost_utils.broadcast_one_to_all(np.zeros(size, np.uint8))
        kind, content = pickle.loads(np.asarray(data).tobytes())
        if kind == END:
            return
        kinds[kind](*content)


def from_first(value: bool) -> bool:
    """The first process's value, in all of them."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.int32(value)))
