"""One layer: read, changed, written.

Axes: I inputs, O outputs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

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
from chopjax.progress import say
from chopjax.sparsify.compensate import inverse_factor
from chopjax.sparsify.experts import ROWS
from chopjax.sparsify.inputs import READS, Sums
from chopjax.sparsify.matrices import Layer, matrices_of
from chopjax.sparsify.ways import Read, Way

Counts = dict[str, list[int]]  # kernel, such as "attention/query" → [zeros, weights]
_COUNTS = "zeros"  # in a layer file's metadata


def read_layer(checkpoint: Checkpoint, layer: int) -> dict[str, np.ndarray]:
    """Its parameters in their own types: path → a stack of one."""
    blocks = flatten_dict(unread_checkpoint(checkpoint, (layer,)), sep="/")
    return {path: leaf.read() for path, leaf in blocks.items() if path.startswith("blocks/")}


def change_layer(
    checkpoint: Checkpoint,
    number: int,
    layer: Layer,
    way: Way,
    sums: Sums,
    tokens: int,
    done: Callable[[], None],
) -> tuple[dict[str, np.ndarray], list[Tensor], Counts]:
    """The layer as it becomes, the tensors that changed, and how many zeros there are.

    sums: of input_sums over so many tokens; empty for a way that looks at none. done: called
    after every matrix. Raises UserError where weights or inputs are no finite numbers.
    """
    if idle := int((np.asarray(sums[ROWS]) == 0).sum()) if ROWS in sums else 0:
        say(
            f"layer {number}: no token reached {idle} of {len(sums[ROWS])} experts, all of whose "
            "inputs count alike; more text may reach them"
        )
    changed, tensors, counts = dict(layer), [], Counts()
    read, what_read = None, None  # of the matrix before, which often reads the same
    matrices = matrices_of(checkpoint, number)
    for path in {path for matrix in matrices for path in matrix.kernels}:
        changed[path] = layer[path].copy()
    for matrix in matrices:
        weight_IO = matrix.joined(layer)
        if not values.is_finite(np.ascontiguousarray(weight_IO)):
            raise UserError(f"{checkpoint.name}: {matrix.name} holds NaN or infinity")
        reads = READS[matrix.kernels[0].split("/")[-1]], matrix.binding.expert
        if sums and reads != what_read:
            read, what_read = _read(sums, *reads, tokens, matrix.name), reads
        arrays = matrix.split(way.change(weight_IO, read, matrix.name), layer)
        for path, array in zip(matrix.kernels, arrays, strict=True):
            count = counts.setdefault(path.removeprefix("blocks/"), [0, 0])
            count[0] += int((array == 0).sum())
            count[1] += array.size
        matrix.put(arrays, changed)
        tensors.append(matrix.tensor(arrays, checkpoint))
        done()
    return changed, tensors, counts


def _read(sums: Sums, name: str, expert: int | None, tokens: int, where: str) -> Read:
    """What a matrix reads, of an expert what it was given. Raises UserError where that is no finite
    numbers, which have no order."""
    own = sums[name]
    if expert is not None:
        own, tokens = own[expert], int(sums[ROWS][expert])
        if not tokens:  # nothing is known of its inputs
            own, tokens = (jnp.eye(len(own)) if own.ndim == 2 else jnp.ones_like(own)), 1
    if not np.isfinite(np.asarray(own)).all():
        raise UserError(f"{where}: the inputs on this text are not all finite numbers")
    factor_II = inverse_factor(np.asarray(own), tokens, where) if own.ndim == 2 else None
    return Read(own, factor_II)


def write_layer(path: Path, tensors: list[Tensor], counts: Mapping[str, list[int]]) -> None:
    with new_file(path, overwrite=True) as temporary:
        metadata = {"format": "pt", _COUNTS: json.dumps(counts)}
        write_file(temporary, tensors, metadata, lambda nbytes: None)


def read_counts(path: Path) -> Counts:
    counts: Counts = json.loads(open_header(path).metadata[_COUNTS])
    return counts
