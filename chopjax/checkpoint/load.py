"""Weights from disk to parameters on devices, each born with its sharding.

From a Hugging Face checkpoint every shard is cut out of the mapped file: of a tensor only the
pages of this host's shards are read, and at no time is more than one shard on the host.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Sharding, SingleDeviceSharding

from chopjax.checkpoint import orbax_folder, values
from chopjax.checkpoint.describe import Description, describe
from chopjax.checkpoint.safetensors_file import DTYPES
from chopjax.checkpoint.source import Checkpoint
from chopjax.checkpoint.verify import check_tied, report_not_finite
from chopjax.errors import UserError
from chopjax.models import parameters
from chopjax.models.config import ModelConfig
from chopjax.models.families.table import Row, bind
from chopjax.models.parameters import Params
from chopjax.progress import progress

__all__ = ["Description", "Loaded", "describe", "load"]

Index = tuple[tuple[int, int], ...]  # first and one past the last, of every axis


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
) -> Loaded:
    """Load a model: a Hugging Face folder, a hub id, an import, a training run; or what `describe`
    said of one, with its revision and step.

    keep: layers to keep, ascending; of a Hugging Face checkpoint the others are not even read.
    shardings: a nested dict of Shardings like the parameters', for the kept layers; by default
        everything lies on the first device of this process.
    dtype: of every parameter; as found by default.
    strict: NaN and infinity in a Hugging Face checkpoint are an error and not only a warning.
    step: which checkpoint of a training run, the latest by default.
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
        leaves = _leaves(whole.weights, keep, None if dtype is None else np.dtype(dtype))
        params = _read_checkpoint(whole.weights, leaves, where, strict)
    else:
        params = _read_orbax(whole.weights, whole.config, keep, where, dtype)
    return Loaded(**vars(description), params=params)


def keep_layers(description: Description, keep: tuple[int, ...]) -> Description:
    """The description of the kept layers alone. Raises UserError for layers that are not there."""
    num_layers = description.config.num_layers
    if not keep or list(keep) != sorted(set(keep)) or not 0 <= keep[0] <= keep[-1] < num_layers:
        raise UserError(
            f"{description.name}: layers to keep must ascend and lie in 0..{num_layers - 1}, "
            f"not {keep}"
        )
    config = description.config.keep(keep)
    bound = bind(description.family, description.config, description.naming)
    old = [b.source for b in bound if b.layer is None or b.layer in keep]
    new = [b.source for b in bind(description.family, config, description.naming)]
    dtypes = description.dtypes
    if dtypes is not None:
        dtypes = {n: dtypes[o] for o, n in zip(old, new, strict=True)}
    return dataclasses.replace(description, config=config, dtypes=dtypes)


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """A parameter and the tensors that it is made of."""

    row: Row
    part: int  # which of the row's parameters
    sources: tuple[str, ...]  # one a layer, or a layer's expert; a single one outside the blocks
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def _leaves(
    checkpoint: Checkpoint, keep: tuple[int, ...] | None, dtype: np.dtype[Any] | None
) -> dict[str, _Leaf]:
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
        path: _Leaf(
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


def _read_checkpoint(
    checkpoint: Checkpoint, leaves: dict[str, _Leaf], where: Mapping[str, Sharding], strict: bool
) -> Params:
    names = {source for leaf in leaves.values() for source in leaf.sources}
    checkpoint.fetch([*names, *(name for pair in checkpoint.match.duplicates for name in pair)])
    check_tied(checkpoint)
    shards = {path: _shards(where[path], leaf.shape) for path, leaf in leaves.items()}
    total = sum(
        leaf.dtype.itemsize * sum(map(_volume, shards[path])) for path, leaf in leaves.items()
    )
    faults: set[str] = set()
    params = {}
    threads = concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    with threads, progress(f"read {checkpoint.name}", total, "B") as bar:
        for path, leaf in leaves.items():
            pieces = []
            for index, devices in shards[path].items():
                shard = _read_shard(checkpoint, leaf, index, threads, faults)
                pieces += [jax.device_put(shard, device) for device in devices]
                bar.advance(shard.nbytes)
            params[path] = jax.make_array_from_single_device_arrays(
                leaf.shape, where[path], pieces
            ).block_until_ready()  # so that the host's copies go before the next are made
    anywhere = strict and orbax_folder.anywhere(bool(faults))
    if faults:
        report_not_finite(checkpoint.name, faults, strict)
    if anywhere:
        raise UserError(f"{checkpoint.name}: another process found NaN or infinity in its part")
    nested: Params = unflatten_dict(params, sep="/")
    return nested


# jax.make_array_from_callback would read a shard once a device, and hold all of a parameter's
# shards on the host at once.
def _shards(sharding: Sharding, shape: tuple[int, ...]) -> dict[Index, list[Sharding]]:
    """The distinct parts of an array that this process holds, and the devices for each."""
    shards: dict[Index, list[Sharding]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        bounds = [part.indices(size) for part, size in zip(index or (), shape, strict=True)]
        key = tuple((start, stop) for start, stop, _ in bounds)
        place = SingleDeviceSharding(device, memory_kind=sharding.memory_kind)
        shards.setdefault(key, []).append(place)
    return shards


def _volume(index: Index) -> int:
    return math.prod(stop - start for start, stop in index)


def _read_shard(
    checkpoint: Checkpoint,
    leaf: _Leaf,
    index: Index,
    threads: concurrent.futures.Executor,
    faults: set[str],
) -> np.ndarray:
    """One part of a parameter, in its type. Adds tensors with NaN or infinity to `faults`."""
    sizes = parameters.sizes(checkpoint.config)
    stacked = leaf.row.stacked
    cut = tuple(slice(*bounds) for bounds in index)
    names: Any = np.array(leaf.sources, object).reshape(leaf.shape[:stacked])
    sources = names[(*cut[:stacked], ...)]
    out = np.empty([bounds.stop - bounds.start for bounds in cut], leaf.dtype)

    def read(place: tuple[int, ...]) -> None:
        name = sources[place]
        tensor = checkpoint.array(name)
        view = leaf.row.to_parameters(tensor, sizes)[leaf.part][cut[stacked:]]
        values.fill(out[place], view)
        if not values.is_finite(out[place]):
            if values.is_finite(values.contiguous(view)):
                raise UserError(
                    f"{checkpoint.name}: {name} ({tensor.dtype}) has values too large for "
                    f"{leaf.dtype}; load it in another type"
                )
            faults.add(name)

    list(threads.map(read, np.ndindex(sources.shape)))
    return out


def _read_orbax(
    path: Path,
    config: ModelConfig,
    keep: tuple[int, ...] | None,
    where: Mapping[str, Sharding],
    dtype: Any,
) -> Params:
    """Orbax stores all layers of a parameter in one piece, so that `keep` slices what was read."""
    orbax_folder.check_files(path)
    abstract = {
        name: jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype, sharding=where[name])
        for name, leaf in orbax_folder.stored(path, config).items()
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
