from __future__ import annotations

import contextlib
import threading
import time

import pytest

from chopjax.data.prefetch import prefetch


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("prefetch")]


def test_order_and_depth() -> None:
    made: list[int] = []

    def make(step: int) -> int:
        made.append(step)
        return step

    with contextlib.closing(prefetch(make, range(3, 9))) as steps:
        assert next(steps) == 3
        time.sleep(0.1)
        assert made == [3, 4, 5]  # two ahead, no more
        assert list(steps) == [4, 5, 6, 7, 8]
    assert not threads()
    assert list(prefetch(str, [])) == []


def test_work_overlaps() -> None:
    start = time.monotonic()
    for _ in prefetch(lambda step: time.sleep(0.1), range(5)):
        time.sleep(0.1)
    assert time.monotonic() - start < 0.9  # 1.0 one after the other


def test_an_error_comes_in_its_turn() -> None:
    def make(step: int) -> float:
        return 1 / (2 - step)

    steps = prefetch(make, range(9), depth=4)
    assert [next(steps), next(steps)] == [0.5, 1.0]
    with pytest.raises(ZeroDivisionError):
        next(steps)
    assert not threads()


def test_no_thread_is_left_behind() -> None:
    with contextlib.suppress(KeyboardInterrupt), contextlib.closing(prefetch(str, range(9))) as all:
        for _ in all:
            assert threads()
            raise KeyboardInterrupt
    assert not threads()
