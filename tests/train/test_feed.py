"""Batches of any source, placed on a mesh; and those made ahead."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time

import pytest

from chopjax.train.feed import prefetch

# A source that has nothing to do with token stores: row r of batch b is filled with 100·b + r.
PROGRAM = """
import jax, numpy as np
from chopjax.data.batch_source import Rows, BatchSource
from chopjax.models.mesh import make_mesh
from chopjax.train.feed import on_mesh

class Numbers:
    batch_size, sequence_length = 8, 3
    fingerprint, record = {"data": ["numbers"]}, []

    def check(self, tokenizer: str | None, vocab_size: int) -> None: ...

    def rows(self, index: int, rows: slice) -> Rows:
        asked.append((index, rows.start, rows.stop))
        row_N = 100 * index + np.arange(self.batch_size, dtype=np.int32)[rows]
        return {"tokens": np.repeat(row_N[:, None], 3, axis=1), "labels": row_N}

asked = []
source: BatchSource = Numbers()
for mesh in (make_mesh(data=2, fsdp=2, tensor=2), make_mesh(data=8)):
    batch = on_mesh(source, 5, mesh)
    np.testing.assert_array_equal(batch["labels"], np.arange(500, 508))
    np.testing.assert_array_equal(batch["tokens"], np.arange(500, 508)[:, None] + np.zeros((1, 3)))
    sizes = {shard.data.shape[0] for shard in batch["labels"].addressable_shards}
    print(sizes, len(batch["tokens"].addressable_shards))
print(asked)
"""


def test_a_source_of_ones_own_on_eight_devices() -> None:
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["{2} 8", "{1} 8", "[(5, 0, 8), (5, 0, 8)]"]


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
