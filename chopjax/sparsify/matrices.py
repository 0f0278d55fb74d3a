"""The matrices of a checkpoint's blocks, one a tensor of the file, and whether they can be pruned.
No jax.

Embeddings, head, norms and biases are none of them, nor is the router of experts: it is small, and
decides more than it computes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from chopjax.checkpoint import values
from chopjax.checkpoint.safetensors_file import DTYPES
from chopjax.checkpoint.source import Checkpoint
from chopjax.checkpoint.writer import Tensor
from chopjax.errors import UserError, did_you_mean, listing
from chopjax.models import parameters
from chopjax.models.families.table import Binding
from chopjax.sparsify.pattern import Pattern

METHODS = ("magnitude", "wanda", "sparsegpt")
TYPES = ("F32", "BF16", "F16")

Layer = Mapping[str, np.ndarray]  # path of parameters.py → a stack of one layer


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A tensor that holds one kernel, or several that read the same inputs (queries, keys and
    values, say): pruned as the one matrix that it is for transformers.

    kernels: paths of parameters.py. inputs: how many; in the order of the file.
    """

    binding: Binding
    kernels: tuple[str, ...]
    inputs: int

    @property
    def name(self) -> str:
        return self.binding.source

    def joined(self, layer: Layer) -> np.ndarray:
        """[I, O]: the kernels side by side."""
        arrays = [layer[path][self._place].reshape(self.inputs, -1) for path in self.kernels]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=1)

    def split(self, weight_IO: np.ndarray, layer: Layer) -> list[np.ndarray]:
        """The inverse of `joined`: one array a kernel, in its axes."""
        shapes = [layer[path][self._place].shape for path in self.kernels]
        widths = [math.prod(shape) // self.inputs for shape in shapes]
        parts = np.split(weight_IO, np.cumsum(widths)[:-1], axis=1)
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def put(self, arrays: Sequence[np.ndarray], layer: Mapping[str, np.ndarray]) -> None:
        """Write what `split` gave into a layer."""
        for path, array in zip(self.kernels, arrays, strict=True):
            layer[path][self._place] = array

    def tensor(self, arrays: Sequence[np.ndarray], checkpoint: Checkpoint) -> Tensor:
        """As the checkpoint has it."""
        about = checkpoint.tensors[self.name]
        sizes = parameters.sizes(checkpoint.config)
        view = self.binding.row.to_tensor(arrays, sizes)
        data = values.contiguous(view, DTYPES[about.dtype])
        return Tensor(self.name, about.dtype, about.shape, data)

    @property
    def _place(self) -> tuple[int, ...]:
        return (0, *self.binding.place[1:])


def matrices_of(checkpoint: Checkpoint, layer: int) -> list[Matrix]:
    """Of one layer, in the order of the family's table."""
    kernels, sizes = parameters.kernels(checkpoint.config), parameters.sizes(checkpoint.config)
    found = []
    for binding in checkpoint.match.bindings:
        paths = binding.row.targets
        if binding.layer == layer and paths[0] in kernels:
            assert all(path in kernels for path in paths)
            inputs = math.prod(sizes[axis] for axis in kernels[paths[0]].inputs)
            found.append(Matrix(binding, paths, inputs))
    return found


def all_matrices(checkpoint: Checkpoint) -> list[Matrix]:
    """Of all layers, in their order."""
    layers = range(checkpoint.config.num_layers)
    return [matrix for layer in layers for matrix in matrices_of(checkpoint, layer)]


def check_method(method: str, with_text: bool) -> None:
    """Raises UserError for what is no method, or one that wants text."""
    if method not in METHODS:
        near = did_you_mean(method, METHODS)
        raise UserError(f"--method: {method!r} is not one of {', '.join(METHODS)}{near}")
    if method != "magnitude" and not with_text:
        raise UserError(
            f"--method {method} looks at what matrices read: give --data FILE; magnitude does "
            "without"
        )


def check(checkpoint: Checkpoint, pattern: Pattern) -> None:
    """Raises UserError where the checkpoint cannot be pruned so, with the reason."""
    matrices = all_matrices(checkpoint)
    group = pattern.group or 1
    if problems := [
        f"{matrix.name} has {matrix.inputs:,} inputs"
        for matrix in matrices
        if matrix.inputs % group
    ]:
        raise UserError(
            f"--pattern {pattern.name}: {group} does not divide every width of "
            f"{checkpoint.name}:\n{listing(problems)}\n"
            "Take a smaller group, or a share such as 0.5, which fits any width"
        )
    check_types(checkpoint, matrices, "pruned")


def check_types(checkpoint: Checkpoint, matrices: Sequence[Matrix], done: str) -> None:
    """Raises UserError that names the matrices of a type that cannot be. done: what was to be, in
    the message."""
    if problems := [
        f"{matrix.name} is {checkpoint.tensors[matrix.name].dtype}"
        for matrix in matrices
        if checkpoint.tensors[matrix.name].dtype not in TYPES
    ]:
        raise UserError(
            f"{checkpoint.name}: matrices of {', '.join(TYPES)} can be {done}:\n{listing(problems)}"
        )
