"""A function of a batch, run on some of its rows at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax


def in_groups(run: Callable[[Any], Any], arrays: Any, most: int) -> Any:
    """run(arrays), in groups of equally many rows, at most `most` of them or one.

    arrays, and what run gives: pytrees whose every leaf has the batch as its first axis.
    """
    batch = jax.tree.leaves(arrays)[0].shape[0]
    rows = max(n for n in range(1, batch + 1) if not batch % n and n <= max(1, most))
    if rows == batch:
        return run(arrays)
    groups = jax.tree.map(lambda x: x.reshape(batch // rows, rows, *x.shape[1:]), arrays)
    results = jax.lax.map(run, groups)
    return jax.tree.map(lambda x: x.reshape(batch, *x.shape[2:]), results)
