"""Parameters in Orbax: written by all processes together, restored onto any sharding.

The pytree in the checkpoint has the key `params`; a training run keeps other things beside it,
which are not read here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from chopjax.checkpoint.describe import PARAMS, Description, write_own
from chopjax.checkpoint.manifest import verify_files, write_manifest
from chopjax.checkpoint.orbax_disk import (
    await_last_writes,
    check_saved,
    orbax_path,
    seal,
    shapes_by_name,
)
from chopjax.disk.atomic import check_room, new_folder
from chopjax.errors import UserError, first_line, listing
from chopjax.models.parameters import Params

PYTREE = "pytree"  # the name of our one checkpointable
# What a run with a teacher learned beside the model's parameters (train/projections.py): not its.
PROJECTIONS = "projections"


def save_import(
    out: Path, description: Description, params: Params, overwrite: bool = False
) -> None:
    """Write a chopjax folder (describe.py) that holds a model as it was imported."""
    protect = (description.folder,)
    with agreed_folder(out, overwrite, protect) as folder:
        if jax.process_index() == 0:
            check_room(folder, sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
            write_own(
                folder,
                description.folder,
                description.raw_config,
                description.naming,
                description.dtypes,
                description.metadata,
                description.provenance,
                description.source,
                description.revision,
            )
        save_params(folder / PARAMS, params)
        if jax.process_index() == 0:
            seal(folder / PARAMS)
            write_manifest(folder / PARAMS)


def save_params(path: Path, params: Params) -> None:
    """Write parameters to a new folder. Every process of the run takes part.

    Raises UserError where the disk is full or forbids it, or where they cannot be read back.
    """
    context = ocp.Context()
    context.array.saving.use_compression = False  # weights are noise to a compressor
    try:
        with context, orbax_path(path) as name:
            ocp.save(name, {"params": params}, checkpointable_name=PYTREE)
            if jax.process_index() == 0:
                check_saved(name, shapes_by_name({"params": params}))
    except UserError:
        raise
    except Exception as error:  # TensorStore's own, of no common type
        await_last_writes()
        raise UserError(f"{path}: could not be written: {first_line(error)}") from error


def stored(path: Path, expected: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Parameter path → shape and dtype, as stored. Raises UserError where these are not the
    expected ones, config.json's."""
    with _readable(path), orbax_path(path) as name:
        tree = ocp.metadata(name).metadata
        params = {k: v for k, v in tree.get("params", {}).items() if k != PROJECTIONS}
        arrays: dict[str, Any] = flatten_dict(params, sep="/")
    problems = [f"missing: {name} {list(expected[name])}" for name in expected.keys() - arrays]
    problems += [f"unknown: {name} {list(arrays[name].shape)}" for name in arrays.keys() - expected]
    problems += [
        f"wrong shape: {name} is {list(arrays[name].shape)}, config.json asks for {list(shape)}"
        for name, shape in expected.items()
        if name in arrays and tuple(arrays[name].shape) != shape
    ]
    if problems:
        raise UserError(
            f"{path}: the parameters do not fit config.json:\n{listing(problems)}\n"
            "A training run that chops after some steps has all layers until then."
        )
    return arrays


def check_files(path: Path) -> None:
    """Raise UserError that names every file of an Orbax folder that is not what was written."""
    problems = verify_files(path, jax.process_index(), jax.process_count())
    if anywhere(bool(problems)):
        problems = problems or ["another process names the files"]
        raise UserError(f"{path}: damaged:\n{listing(problems)}")


def anywhere(flag: bool) -> bool:
    """Whether the flag is set on any process, so that all of them stop together."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def load_params(path: Path, abstract: Params) -> Params:
    """Restore parameters as the ShapeDtypeStructs of `abstract` say, sharding and type included.

    Only what `abstract` names is read, and of that only this host's shards.
    """
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with _readable(path), context, orbax_path(path) as name:
        params: Params = ocp.load(name, {"params": abstract})["params"]
        return params


@dataclasses.dataclass(frozen=True)
class Unread:
    """A parameter on disk, which `read` brings into the host's memory.

    read_one: only what stands at these first indices (a layer; a layer's expert), where less than
    all of it can be read.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[], np.ndarray]
    read_one: Callable[[tuple[int, ...]], np.ndarray] | None = None


def unread_params(path: Path, expected: Mapping[str, tuple[int, ...]]) -> Params:
    """The parameters of a folder, of these shapes, none of them read yet. Verifies its files."""
    check_files(path)

    def read(name: str, leaf: Any) -> np.ndarray:
        # A numpy leaf asks Orbax for numpy; this one takes no memory.
        abstract = np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)
        tree = load_params(path, unflatten_dict({name: abstract}, sep="/"))
        array: np.ndarray = flatten_dict(tree, sep="/")[name]
        return array

    unread: dict[str, Any] = unflatten_dict(
        {
            name: Unread(tuple(leaf.shape), leaf.dtype, functools.partial(read, name, leaf))
            for name, leaf in stored(path, expected).items()
        },
        sep="/",
    )
    return unread


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Whatever Orbax and TensorStore raise about files, as one error that names the folder."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = first_line(error)
        raise UserError(f"{path}: damaged or not an Orbax checkpoint: {reason}") from error


@contextlib.contextmanager
def agreed_folder(final: Path, overwrite: bool, protect: tuple[Path, ...]) -> Iterator[Path]:
    """new_folder for all processes of a run: the first makes and renames it, all get its name."""
    if jax.process_count() == 1:
        with new_folder(final, "import", overwrite, protect) as folder:
            yield folder
        return
    with contextlib.ExitStack() as stack:
        name = np.zeros(4096, np.uint8)
        if jax.process_index() == 0:
            folder = stack.enter_context(new_folder(final, "import", overwrite, protect))
            encoded = str(folder).encode()
            name[: len(encoded)] = list(encoded)
        name = multihost_utils.broadcast_one_to_all(name)
        yield Path(bytes(name).rstrip(b"\0").decode())
        multihost_utils.sync_global_devices("chopjax import: everything is written")
    multihost_utils.sync_global_devices("chopjax import: the folder has its name")
