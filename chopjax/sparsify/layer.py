"""One layer: read, pruned, written.

Axes: I inputs, O outputs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from chopjax.checkpoint import values
from chopjax.checkpoint.leaves import unread_checkpoint
from chopjax.checkpoint.safetensors_file import open_header
from chopjax.checkpoint.source import Checkpoint
from chopjax.checkpoint.writer import Tensor, write_file
from chopjax.disk.atomic import new_file
from chopjax.errors import UserError
from chopjax.sparsify.inputs import READS, Sums
from chopjax.sparsify.masks import magnitude, wanda
from chopjax.sparsify.matrices import Layer, matrices_of
from chopjax.sparsify.pattern import Pattern
from chopjax.sparsify.sparsegpt import inverse_factor, sparsegpt

Counts = dict[str, list[int]]  # kernel, such as "attention/query" → [zeros, weights]
_COUNTS = "zeros"  # in a layer file's metadata


def read_layer(checkpoint: Checkpoint, layer: int) -> dict[str, np.ndarray]:
    """Its parameters in their own types: path → a stack of one."""
    blocks = flatten_dict(unread_checkpoint(checkpoint, (layer,)), sep="/")
    return {path: leaf.read() for path, leaf in blocks.items() if path.startswith("blocks/")}


def prune_layer(
    checkpoint: Checkpoint,
    number: int,
    layer: Layer,
    method: str,
    pattern: Pattern,
    sums: Sums,
    tokens: int,
    done: Callable[[], None],
) -> tuple[dict[str, np.ndarray], list[Tensor], Counts]:
    """The layer with its zeros, the tensors that changed, and how many zeros there are.

    sums: of input_sums over so many tokens; empty for a method that looks at none. done: called
    after every matrix. Raises UserError where weights or inputs are no finite numbers.
    """
    pruned, tensors, counts = dict(layer), [], Counts()
    factors: dict[str, np.ndarray] = {}
    matrices = matrices_of(checkpoint, number)
    for path in {path for matrix in matrices for path in matrix.kernels}:
        pruned[path] = layer[path].copy()
    for matrix in matrices:
        weight_IO = matrix.joined(layer)
        if not values.is_finite(np.ascontiguousarray(weight_IO)):
            raise UserError(f"{checkpoint.name}: {matrix.name} holds NaN or infinity")
        reads = READS[matrix.kernels[0].split("/")[-1]]
        if method == "magnitude":
            changed_IO = _without(weight_IO, magnitude(jnp.asarray(weight_IO), pattern))
        elif method == "wanda":
            zeros_IO = wanda(jnp.asarray(weight_IO), sums[reads], pattern)
            changed_IO = _without(weight_IO, zeros_IO)
        else:
            gram_II = np.asarray(sums[reads])
            if reads not in factors:
                factors[reads] = inverse_factor(gram_II, tokens, matrix.name)
            dead_I = gram_II.diagonal() == 0
            made_IO = sparsegpt(jnp.asarray(weight_IO), dead_I, factors[reads], pattern)
            changed_IO = _rounded(np.asarray(made_IO), weight_IO.dtype, matrix.name)
        arrays = matrix.split(changed_IO, layer)
        for path, array in zip(matrix.kernels, arrays, strict=True):
            count = counts.setdefault(path.removeprefix("blocks/"), [0, 0])
            count[0] += int((array == 0).sum())
            count[1] += array.size
        matrix.put(arrays, pruned)
        tensors.append(matrix.tensor(arrays, checkpoint))
        done()
    return pruned, tensors, counts


def _without(weight_IO: np.ndarray, zeros_IO: Any) -> np.ndarray:
    """What stays keeps its bits."""
    return np.where(np.asarray(zeros_IO), weight_IO.dtype.type(0), weight_IO)


def _rounded(wide_IO: np.ndarray, dtype: np.dtype[Any], where: str) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        narrow_IO = wide_IO.astype(dtype)
    if not np.isfinite(narrow_IO.astype(np.float32)).all():
        raise UserError(
            f"{where}: what SparseGPT makes of it does not fit {dtype}; give more text "
            "(--sequences), or take --method wanda"
        )
    return narrow_IO


def write_layer(path: Path, tensors: list[Tensor], counts: Mapping[str, list[int]]) -> None:
    with new_file(path, overwrite=True) as temporary:
        metadata = {"format": "pt", _COUNTS: json.dumps(counts)}
        write_file(temporary, tensors, metadata, lambda nbytes: None)


def read_counts(path: Path) -> Counts:
    counts: Counts = json.loads(open_header(path).metadata[_COUNTS])
    return counts
