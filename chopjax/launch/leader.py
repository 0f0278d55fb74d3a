"""Scoring on several processes: the first plans and keeps the answers, all of them compute.

The first process runs the harness. Before anything is computed it sends what that is to the others,
who wait in `follow`; then all launch the same programs over the mesh, and what these give is whole
on every process. With a single process nothing is sent and nothing waits.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from chopjax.errors import UserError

END = "end"
_computing = False  # of the first process: the others are in the middle of something


def send(kind: str, *content: Any) -> None:
    """The first process to all others: what comes next. Nothing happens in a single process."""
    if jax.process_count() == 1 or jax.process_index() != 0:
        return
    data = np.frombuffer(pickle.dumps((kind, content)), np.uint8)
    multihost_utils.broadcast_one_to_all(np.int64(len(data)))
    multihost_utils.broadcast_one_to_all(data)


def follow(kinds: dict[str, Callable[..., Any]]) -> int:
    """What a process that is not the first does: whatever it is told, to the end.

    kinds: what to call for each kind of message. Returns the exit code that the first process sent.
    """
    while True:
        size = int(multihost_utils.broadcast_one_to_all(np.int64(0)))
        data = multihost_utils.broadcast_one_to_all(np.zeros(size, np.uint8))
        kind, content = pickle.loads(np.asarray(data).tobytes())
        if kind == END:
            return int(content[0])
        kinds[kind](*content)


def meet() -> None:
    """All processes, when each has its model: they connect now, which has a time limit of half a
    minute on CPUs. The others wait for the first one's prompts without one afterwards."""
    said_by_the_first(True)


def said_by_the_first(value: bool) -> bool:
    """The first process's value, in all of them."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.int32(value)))


@contextlib.contextmanager
def computing() -> Iterator[None]:
    """Around programs that the others run, too."""
    global _computing
    _computing = True
    yield
    _computing = False


@contextlib.contextmanager
def leading() -> Iterator[None]:
    """Around the first process's work: at its end, good or bad, the others end, too."""
    try:
        yield
    except BaseException as error:
        if jax.process_count() > 1 and _computing:
            # The others wait inside a program for this process and cannot be told. They end when
            # jax sees that this one is gone, which its orderly exit would put off.
            reason = error if isinstance(error, UserError) else repr(error)
            print(f"chopjax score: error: {reason}", file=sys.stderr, flush=True)
            os._exit(130 if isinstance(error, KeyboardInterrupt) else 2)
        send(END, 2)
        raise
    send(END, 0)
