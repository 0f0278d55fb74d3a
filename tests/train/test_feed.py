"""Batches of any source, placed on a mesh."""

from __future__ import annotations

import os
import subprocess
import sys

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
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["{2} 8", "{1} 8", "[(5, 0, 8), (5, 0, 8)]"]
