"""The next batches, made while the device works."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


def prefetch(
    make: Callable[[int], Result], steps: Iterable[int], depth: int = 2
) -> Generator[Result, None, None]:
    """make(step) for each step in order, up to `depth` of them ahead, in one background thread.

    An exception of `make` is raised when its turn comes. Wrap it in contextlib.closing where the
    loop may be left early: the thread ends with the generator, after the batch that it is at.
    """
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as thread:
        try:
            for step in steps:
                waiting.append(thread.submit(make, step))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
