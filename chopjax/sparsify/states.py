"""What enters a layer, of every sequence: a file, so that memory holds one batch.

Three kinds of rows go up through the layers side by side: those that are looked at and those that
the loss is measured on, both through the pruned layers, and the latter through the parent's, too.

Axes: B batch, T time, D model, R batches of all kinds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from chopjax import interrupts
from chopjax.chop.calibration import CalibrationBatch
from chopjax.chop.prefixes import advance, embed
from chopjax.disk.atomic import check_room, new_file
from chopjax.models.compute import Compute
from chopjax.models.config import ModelConfig
from chopjax.models.parameters import Params
from chopjax.sparsify.text import Text

CALIBRATION, HELD_OUT, PARENT = "calibration", "held out", "held out, parent"
_ONE = np.zeros(1, np.int32)  # the one layer of a stack of one


class Rows(NamedTuple):
    kind: str
    batch: CalibrationBatch


def rows_of(text: Text, calibrates: bool) -> list[Rows]:
    """calibrates: whether the method looks at inputs at all."""
    looked_at = text.calibration if calibrates else ()
    return [
        *(Rows(CALIBRATION, batch) for batch in looked_at),
        *(Rows(HELD_OUT, batch) for batch in text.held_out),
        *(Rows(PARENT, batch) for batch in text.held_out),
    ]


def embedded(
    path: Path, rows: list[Rows], params: Params, config: ModelConfig, compute: Compute
) -> None:
    """Write what enters the first layer. config: without layers."""
    _write(path, rows, config, lambda at: embed(params, rows[at].batch, config, compute))


def advanced(
    path: Path,
    before: Path,
    rows: list[Rows],
    pruned: Params,
    parents: Params,
    config: ModelConfig,
    compute: Compute,
    done: Callable[[], None],
) -> None:
    """Write what leaves a layer. pruned, parents: stacks of this one layer; config: with it alone.
    done: called after every batch."""

    def run(at: int, hidden_BTD: jax.Array) -> jax.Array:
        blocks = parents if rows[at].kind == PARENT else pruned
        left_BTD: jax.Array = advance(
            {"blocks": blocks}, hidden_BTD, _ONE, 0, 1, config, compute
        ).block_until_ready()
        done()
        return left_BTD

    mapped(path, before, rows, config, run)


def mapped(
    path: Path,
    before: Path,
    rows: list[Rows],
    config: ModelConfig,
    run: Callable[[int, jax.Array], jax.Array],
) -> None:
    """Write what `run` makes of every batch's number and of its hidden_BTD in `before`."""
    states_RBTD = np.load(before, mmap_mode="r")
    _write(path, rows, config, lambda at: run(at, jnp.asarray(states_RBTD[at])))


def read(path: Path, rows: list[Rows], kind: str) -> Iterator[tuple[CalibrationBatch, jax.Array]]:
    """The batches of a kind, each with its hidden_BTD."""
    states_RBTD = np.load(path, mmap_mode="r")
    for at, row in enumerate(rows):
        if row.kind == kind:
            interrupts.check()
            yield row.batch, jnp.asarray(states_RBTD[at])


def file_bytes(rows: list[Rows], config: ModelConfig) -> int:
    """Of one file."""
    tokens: int = len(rows) * math.prod(rows[0].batch.tokens_BT.shape)
    return 4 * tokens * config.embed_dim


def _write(
    path: Path, rows: list[Rows], config: ModelConfig, make: Callable[[int], jax.Array]
) -> None:
    shape = (len(rows), *rows[0].batch.tokens_BT.shape, config.embed_dim)
    check_room(path.parent, file_bytes(rows, config))
    with new_file(path, overwrite=True) as temporary:
        states_RBTD = np.lib.format.open_memmap(temporary, "w+", np.float32, shape)
        for at in range(len(rows)):
            states_RBTD[at] = np.asarray(make(at), np.float32)
        states_RBTD.flush()
