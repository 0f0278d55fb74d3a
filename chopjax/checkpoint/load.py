"""Weights from disk to parameters on devices, each born with its sharding.

Of a Hugging Face checkpoint a process reads what its devices hold, each byte once however many of
them hold it, and a page around where that is cut through the rows of a file (pieces.py). The host
has one parameter's shards at a time, and a piece of a tensor for each thread. Kernels that are
quantized while they are read, or made of codes, are the exception: their matrices are read whole.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import SingleDeviceSharding

from chopjax.checkpoint import orbax_folder, values
from chopjax.checkpoint.describe import AdapterRun, Description, describe, keep_layers
from chopjax.checkpoint.leaves import Leaf, leaves_of, read_codes, read_one
from chopjax.checkpoint.load_quantized import read_quantized
from chopjax.checkpoint.packed import Packed
from chopjax.checkpoint.pieces import pieces
from chopjax.checkpoint.shards import Index, joined, overlap, shards_of, volume, within
from chopjax.checkpoint.source import Checkpoint
from chopjax.checkpoint.unread import bring, unread
from chopjax.checkpoint.verify import check_tied, report_not_finite
from chopjax.errors import UserError
from chopjax.models import parameters
from chopjax.models.config import ModelConfig
from chopjax.models.parameters import Params
from chopjax.models.quantized import Quantized
from chopjax.progress import progress

# Makes an empty array of a shape and a type, to read into.
Room = Callable[[Sequence[int], Any], np.ndarray]

__all__ = ["Description", "Loaded", "describe", "load"]


@dataclasses.dataclass(frozen=True)
class Loaded(Description):
    """A model with its parameters.

    With `keep`, config, dtypes and params have the kept layers only; raw_config and provenance
    are as found (chop.surgery.chop_config makes the former follow).
    """

    params: Params


def load(
    model: str | Description,
    revision: str | None = None,
    keep: tuple[int, ...] | None = None,
    shardings: Mapping[str, Any] | None = None,
    dtype: Any = None,
    strict: bool = False,
    step: int | None = None,
    read_only: bool = False,
) -> Loaded:
    """Load a model: a Hugging Face folder, a hub id, an import, a training run; or what `describe`
    said of one, with its revision and step.

    keep: layers to keep, ascending; of a Hugging Face checkpoint the others are not even read.
    shardings: a nested dict of Shardings like the parameters', for the kept layers; by default
        everything lies on the first device of this process. Where a Quantized of Shardings stands,
        the kernel is quantized while it is read, a matrix at a time.
    dtype: of every parameter; as found by default.
    strict: NaN and infinity in a Hugging Face checkpoint are an error and not only a warning.
    step: which checkpoint of a training run, the latest by default.
    read_only: no program will be given the memory of the parameters for its own results (donated).
        Of a Hugging Face checkpoint, processors then compute on what was read into, without a copy.
    """
    whole = model if isinstance(model, Description) else describe(model, revision, step)
    description = whole if keep is None else keep_layers(whole, keep)
    paths = parameters.axes(description.config)
    if shardings is None:
        where = dict.fromkeys(paths, SingleDeviceSharding(jax.local_devices()[0]))
    else:
        given = flatten_dict(shardings, sep="/")
        where = {path: given[path] for path in paths}
    if isinstance(whole.weights, Checkpoint):
        leaves = leaves_of(whole.weights, keep, None if dtype is None else np.dtype(dtype))
        room = values.aligned if read_only else np.empty
        params = _read_checkpoint(whole.weights, leaves, where, strict, room)
    elif isinstance(whole.weights, AdapterRun):
        params = bring(unread(whole.weights, whole.config, keep), where, dtype)
    else:
        params = _read_orbax(whole.weights, whole.config, keep, where, dtype)
    return Loaded(**vars(description), params=params)


def _read_checkpoint(
    checkpoint: Checkpoint,
    leaves: dict[str, Leaf],
    where: Mapping[str, Any],
    strict: bool,
    room: Room,
) -> Params:
    names = {source for leaf in leaves.values() for source in leaf.sources}
    checkpoint.fetch([*names, *(name for pair in checkpoint.match.duplicates for name in pair)])
    check_tied(checkpoint)
    shards = {
        path: shards_of(where[path], leaf.shape)
        for path, leaf in leaves.items()
        if not isinstance(where[path], Quantized)
    }
    quantized = [leaf for path, leaf in leaves.items() if path not in shards]
    total = sum(
        leaves[path].dtype.itemsize * sum(map(volume, own)) for path, own in shards.items()
    ) + sum(leaf.dtype.itemsize * math.prod(leaf.shape) for leaf in quantized)
    faults: set[str] = set()
    params = {}
    threads = concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    with threads, progress(f"read {checkpoint.name}", total, "B") as bar:
        for path, leaf in leaves.items():
            if path not in shards:
                read: Any = functools.partial(read_one, checkpoint, leaf, faults)
                if isinstance(checkpoint.tensors[leaf.sources[0]], Packed):
                    inputs = len(where[path].form.inputs)
                    read = functools.partial(read_codes, checkpoint, leaf, inputs)
                leading = leaf.shape[: leaf.row.stacked]
                params[path] = read_quantized(read, leading, where[path], threads)
                bar.advance(leaf.dtype.itemsize * math.prod(leaf.shape))
                continue
            read_shards = _read_shards(checkpoint, leaf, shards[path], threads, faults, room)
            placed = []
            for index, devices in shards[path].items():
                placed += [jax.device_put(read_shards[index], device) for device in devices]
                bar.advance(read_shards[index].nbytes)
            params[path] = jax.make_array_from_single_device_arrays(
                leaf.shape, where[path], placed
            ).block_until_ready()  # so that the host's copies go before the next are made
    anywhere = strict and orbax_folder.anywhere(bool(faults))
    if faults:
        report_not_finite(checkpoint.name, faults, strict)
    if anywhere:
        raise UserError(f"{checkpoint.name}: another process found NaN or infinity in its part")
    nested: Params = unflatten_dict(params, sep="/")
    return nested


def _read_shards(
    checkpoint: Checkpoint,
    leaf: Leaf,
    shards: Iterable[Index],
    threads: concurrent.futures.Executor,
    faults: set[str],
    room: Room,
) -> dict[Index, np.ndarray]:
    """Parts of a parameter, in its type. Adds tensors with NaN or infinity to `faults`."""
    sizes = parameters.sizes(checkpoint.config)
    stacked = leaf.row.stacked
    names: Any = np.array(leaf.sources, object).reshape(leaf.shape[:stacked])
    made = {index: room([stop - start for start, stop in index], leaf.dtype) for index in shards}

    def read(place: tuple[int, ...]) -> None:
        name, one = names[place], tuple((at, at + 1) for at in place)
        here = {  # of this tensor
            index[stacked:]: out[tuple(at - index[axis][0] for axis, at in enumerate(place))]
            for index, out in made.items()
            if overlap(one, index[:stacked]) is not None
        }
        tensor = checkpoint.tensors[name]
        mapped = tensor.read()
        view = leaf.row.to_parameters(mapped, sizes)[leaf.part]
        for part in joined(here):
            for corner, piece in pieces(tensor, mapped, view[_slices(part)]):
                lies = zip(part, corner, piece.shape, strict=True)
                came = tuple((start + at, start + at + size) for (start, _), at, size in lies)
                for index, out in here.items():
                    if (common := overlap(came, index)) is not None:
                        values.fill(out[within(common, index)], piece[within(common, came)])
        for index, out in here.items():
            if not values.is_finite(out):
                if values.is_finite(values.contiguous(view[_slices(index)])):
                    raise UserError(
                        f"{checkpoint.name}: {name} ({tensor.dtype}) has values too large for "
                        f"{leaf.dtype}; load it in another type"
                    )
                faults.add(name)

    list(threads.map(read, np.ndindex(names.shape)))
    return made


def _slices(part: Index) -> tuple[slice, ...]:
    return tuple(slice(*bounds) for bounds in part)


def _read_orbax(
    path: Path,
    config: ModelConfig,
    keep: tuple[int, ...] | None,
    where: Mapping[str, Any],
    dtype: Any,
) -> Params:
    """Orbax stores all layers of a parameter in one piece, so that `keep` slices what was read."""
    orbax_folder.check_files(path)
    present = orbax_folder.stored(path, parameters.shapes(config))
    if any(isinstance(place, Quantized) for place in where.values()):
        return bring(unread(path, config, keep), where, dtype)
    abstract = {
        name: jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype, sharding=where[name])
        for name, leaf in present.items()
    }
    params = orbax_folder.load_params(path, unflatten_dict(abstract, sep="/"))
    if keep is not None:
        blocks = {name: where[name] for name in abstract if name.startswith("blocks/")}
        rows = np.array(keep)
        cut = jax.jit(
            lambda tree: jax.tree.map(lambda w: w[rows], tree),
            out_shardings=unflatten_dict(blocks, sep="/")["blocks"],
        )
        params["blocks"] = cut(params["blocks"])
    return params
