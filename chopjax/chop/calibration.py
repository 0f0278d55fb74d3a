"""Calibration text as batches of rows: what layers are measured on.

Axes: B batch, T time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class CalibrationBatch(NamedTuple):
    """Rows of one sequence each, filled up on the right. numpy, or jax arrays on a mesh."""

    tokens_BT: Any  # int32
    lengths_B: Any  # int32; 0: a row that only fills the batch


def make_batches(
    sequences: Sequence[Sequence[int]], batch_size: int, length: int | None = None
) -> list[CalibrationBatch]:
    """Sequences in their order, `batch_size` rows a batch, all batches of one shape.

    T is the longest sequence's length, or `length`. A causal model's states at a token do not
    depend on what follows, so rows need no mask but at the loss.
    """
    length = length or max(len(sequence) for sequence in sequences)
    batches = []
    for start in range(0, len(sequences), batch_size):
        rows = sequences[start : start + batch_size]
        tokens_BT = np.zeros((batch_size, length), np.int32)
        lengths_B = np.zeros(batch_size, np.int32)
        for row, sequence in enumerate(rows):
            tokens_BT[row, : len(sequence)] = sequence
            lengths_B[row] = len(sequence)
        batches.append(CalibrationBatch(tokens_BT, lengths_B))
    return batches


def real_tokens(batch: CalibrationBatch) -> jax.Array:
    """[B, T] bool: no filling."""
    real_BT: jax.Array = jnp.arange(batch.tokens_BT.shape[1])[None] < batch.lengths_B[:, None]
    return real_BT


def predictions(batch: CalibrationBatch) -> tuple[jax.Array, jax.Array]:
    """Targets [B, T] int32, and weights [B, T] float32: 1 where the next token is known."""
    targets_BT = jnp.roll(batch.tokens_BT, -1, axis=1)
    known_BT = jnp.arange(batch.tokens_BT.shape[1])[None] < batch.lengths_B[:, None] - 1
    return targets_BT, known_BT.astype(jnp.float32)


def positions(batch: CalibrationBatch) -> jax.Array:
    """[1, T]: every row counts from 0."""
    return jnp.arange(batch.tokens_BT.shape[1], dtype=jnp.int32)[None]


def predicted_tokens(batches: Sequence[CalibrationBatch]) -> int:
    """How many tokens have a loss: all but the first of every sequence."""
    return int(sum(np.maximum(np.asarray(b.lengths_B) - 1, 0).sum() for b in batches))
