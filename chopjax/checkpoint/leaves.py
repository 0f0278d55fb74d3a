"""The parameters of a Hugging Face checkpoint, each with the tensors that it is made of."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from chopjax.checkpoint import values
from chopjax.checkpoint.orbax_folder import Unread
from chopjax.checkpoint.packed import Packed
from chopjax.checkpoint.safetensors_file import DTYPES
from chopjax.checkpoint.source import Checkpoint
from chopjax.errors import UserError
from chopjax.models import parameters
from chopjax.models.families.table import Row
from chopjax.models.parameters import Params


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A parameter and the tensors that it is made of."""

    row: Row
    part: int  # which of the row's parameters
    sources: tuple[str, ...]  # one a layer, or a layer's expert; a single one outside the blocks
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def leaves_of(
    checkpoint: Checkpoint, keep: tuple[int, ...] | None, dtype: np.dtype[Any] | None
) -> dict[str, Leaf]:
    kept = range(checkpoint.config.num_layers) if keep is None else keep
    sources: dict[str, list[str]] = {}
    rows: dict[str, tuple[Row, int]] = {}
    second = {name for _, name in checkpoint.match.duplicates}
    for binding in checkpoint.match.bindings:
        if binding.layer not in (None, *kept) or binding.source in second:
            continue
        for part, path in enumerate(binding.row.targets):
            sources.setdefault(path, []).append(binding.source)
            rows[path] = (binding.row, part)
    shapes = parameters.shapes(checkpoint.config.keep(kept))
    return {
        path: Leaf(
            *rows[path], tuple(sources[path]), shape, dtype or _dtype(checkpoint, sources[path])
        )
        for path, shape in shapes.items()
    }


def _dtype(checkpoint: Checkpoint, sources: list[str]) -> np.dtype[Any]:
    """The type of a parameter: its tensors'; where they differ, one that holds each exactly."""
    names = {checkpoint.tensors[source].dtype for source in sources}
    name = names.pop() if len(names) == 1 else "F64" if "F64" in names else "F32"
    if name == "F64" and jax.dtypes.canonicalize_dtype(np.float64) != np.float64:
        raise UserError(
            f"{checkpoint.name}: {sources[0]} is float64, which JAX computes in float32; "
            "ask for another type (--dtype float32)"
        )
    return DTYPES[name]


def read_one(
    checkpoint: Checkpoint, leaf: Leaf, faults: set[str], place: tuple[int, ...]
) -> np.ndarray:
    """What of a parameter stands at these first indices, in the file's type: a view of the file."""
    names: Any = np.array(leaf.sources, object).reshape(leaf.shape[: leaf.row.stacked])
    name = names[place]
    sizes = parameters.sizes(checkpoint.config)
    view = leaf.row.to_parameters(checkpoint.array(name), sizes)[leaf.part]
    if not values.is_finite(values.contiguous(view)):
        faults.add(name)
    return view


def read_codes(
    checkpoint: Checkpoint, leaf: Leaf, inputs: int, place: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Codes [O, I] and scales [O, S] of the matrix there, outputs in the parameter's order.

    inputs: how many of the parameter's axes, the first, the matrix reads.
    """
    names: Any = np.array(leaf.sources, object).reshape(leaf.shape[: leaf.row.stacked])
    tensor = checkpoint.tensors[names[place]]
    assert isinstance(tensor, Packed)
    # Which row of the file is which output: a row of numbers of its own goes where its weights do.
    number_OI = np.broadcast_to(np.arange(tensor.shape[0])[:, None], tensor.shape)
    moved = leaf.row.to_parameters(number_OI, parameters.sizes(checkpoint.config))[leaf.part]
    order_O = moved[(0,) * inputs].reshape(-1)
    codes_OI, scales_OS = tensor.codes()
    return codes_OI[order_O], scales_OS[order_O]


def unread_checkpoint(checkpoint: Checkpoint, keep: tuple[int, ...] | None) -> Params:
    """The parameters of a Hugging Face checkpoint, in their own types, none of them read yet."""
    unread: dict[str, Any] = {}
    leaves = leaves_of(checkpoint, keep, None)
    checkpoint.fetch({source for leaf in leaves.values() for source in leaf.sources})
    for path, leaf in leaves.items():
        one = functools.partial(read_one, checkpoint, leaf, set())
        stacked = leaf.shape[: leaf.row.stacked]

        def whole(leaf: Leaf = leaf, one: Any = one, stacked: Any = stacked) -> np.ndarray:
            array = np.empty(leaf.shape, leaf.dtype)
            for place in np.ndindex(stacked):
                array[place] = values.contiguous(one(place), leaf.dtype)
            return array

        unread[path] = Unread(leaf.shape, leaf.dtype, whole, one if stacked else None)
    nested: Params = unflatten_dict(unread, sep="/")
    return nested
