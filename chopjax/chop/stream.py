"""Hugging Face checkpoint → Hugging Face checkpoint with fewer layers.

The kept tensors' bytes go from file to file: nothing is decoded, removed tensors are never read or
downloaded, and memory does not grow with the model. No jax.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chopjax.checkpoint.assets import SIDE_FILES, copy_assets, write_config
from chopjax.checkpoint.card import write_record
from chopjax.checkpoint.provenance import compose, record_of
from chopjax.checkpoint.safetensors_file import DTYPES
from chopjax.checkpoint.source import Checkpoint, Files
from chopjax.checkpoint.structure import follow, followed_names, kept_name
from chopjax.checkpoint.writer import MAX_SHARD_BYTES, Tensor, write_safetensors
from chopjax.chop.folds import Folds
from chopjax.chop.merge import Blend, Recipe, blend_arrays
from chopjax.disk.atomic import new_folder
from chopjax.disk.files import inside, read_json_object
from chopjax.errors import UserError
from chopjax.keep import Keep, removed
from chopjax.models import parameters
from chopjax.models.families.table import is_buffer
from chopjax.progress import progress

PIECE_BYTES = 1 << 24


@dataclasses.dataclass(frozen=True)
class Size:
    """parameters: a tied table counted once; None where chopjax does not compute with the model.
    elements, bytes: of all tensors in the files, as they are stored: packed weights count as what
    they are packed into."""

    layers: int
    parameters: int | None
    elements: int
    tensors: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class ChopPlan:
    """What a chop will keep, known from headers alone.

    tensors: name in the chopped checkpoint → name in the checkpoint that is chopped.
    """

    kept_layers: Keep
    removed_layers: Keep
    tensors: dict[str, str]
    before: Size
    after: Size


def plan_chop(checkpoint: Files, keep: Keep) -> ChopPlan:
    """Which tensors stay and under which names. Raises UserError for an impossible keep list."""
    num_layers = checkpoint.num_layers
    if list(keep) != sorted(set(keep)) or not keep or keep[0] < 0 or keep[-1] >= num_layers:
        raise UserError(
            f"{list(keep)} is not a keep list for {checkpoint.name}: layers 0-"
            f"{num_layers - 1}, each at most once, ascending"
        )
    tensors: dict[str, str] = {}
    for name in checkpoint.tensors:
        new = kept_name(checkpoint.structure, name, keep, num_layers)
        if new is not None:
            tensors[new] = name
    everything = tuple(range(num_layers))
    return ChopPlan(
        keep,
        removed(keep, num_layers),
        tensors,
        _size(checkpoint, everything, checkpoint.tensors),
        _size(checkpoint, keep, tensors.values()),
    )


def _size(checkpoint: Files, keep: Keep, names: Iterable[str]) -> Size:
    parts = [_kept_part(checkpoint, name, keep) for name in names]
    count = None
    if isinstance(checkpoint, Checkpoint):
        count = parameters.count(checkpoint.config.keep(keep))
    return Size(
        layers=len(keep),
        parameters=count,
        elements=sum(math.prod(part.shape) for part in parts),
        tensors=len(parts),
        bytes=sum(part.nbytes for part in parts),
    )


def _kept_part(checkpoint: Files, name: str, keep: Keep) -> Tensor:
    """A tensor that stays, as it is, or the kept layers' parts of it where it holds one of each."""
    part = checkpoint.tensors[name]
    axis = checkpoint.structure.packed_axis(name)
    if axis is None:
        return Tensor(name, part.dtype, part.shape, part)
    layers = checkpoint.num_layers
    if len(part.shape) <= axis or part.shape[axis] % layers:
        raise UserError(
            f"{checkpoint.name}: {name} {list(part.shape)} does not have a part for each of the "
            f"{layers} layers in its axis {axis}"
        )
    each = part.shape[axis] // layers
    shape = (*part.shape[:axis], each * len(keep), *part.shape[axis + 1 :])
    split = (*part.shape[:axis], layers, each, *part.shape[axis + 1 :])
    data = functools.partial(_parts, checkpoint, name, split, axis, keep)
    return Tensor(name, part.dtype, shape, data)


def _parts(
    checkpoint: Files, name: str, split: tuple[int, ...], axis: int, keep: Keep
) -> Iterable[np.ndarray]:
    """The kept layers' parts, a piece of the tensor at a time: it may be larger than memory."""
    array = checkpoint.array(name).reshape(split)
    if axis == 0:
        yield from (array[layer] for layer in keep)
        return
    step = max(1, PIECE_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), step):
        yield np.take(array[start : start + step], keep, axis)


def chopped_config(checkpoint: Files, keep: Keep) -> dict[str, Any]:
    """config.json of the checkpoint that keeps these layers. Raises UserError where it cannot say
    what they are."""
    return follow(
        checkpoint.structure,
        checkpoint.raw_config,
        checkpoint.num_layers,
        keep,
        checkpoint.tensors,
    )


def chop_checkpoint(
    checkpoint: Files,
    keep: Keep,
    out: Path,
    strategy: str,
    settings: Mapping[str, Any],
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    recipe: Recipe = (),
    folds: Folds | None = None,
) -> ChopPlan:
    """Write the checkpoint that keeps these layers.

    strategy, settings: recorded in chopjax.json beside the kept layers, which are numbered as in
    the first parent when the checkpoint was itself chopped.
    recipe: what becomes of the kept layers where they are merged with others; without it their
    bytes are copied.
    folds: what a repair puts in place of some parameters, after merging.
    Returns what was kept. Raises UserError, and leaves nothing behind, where `out` exists, the disk
    is full or the download fails.
    """
    chosen = plan_chop(checkpoint, keep)
    config = chopped_config(checkpoint, keep)
    added: list[Tensor] = []
    if folds is not None:
        config, added = folds.config(config), folds.added(checkpoint, keep)
        chosen = dataclasses.replace(chosen, after=_grown(chosen.after, added))
        settings = {**settings, "repair": folds.record(chosen.tensors, checkpoint, keep)}
    record = compose(
        record_of(checkpoint),
        checkpoint.name,
        checkpoint.revision,
        checkpoint.num_layers,
        strategy,
        settings,
        keep,
    )
    with new_folder(out, "chop", overwrite, protect=[checkpoint.folder]) as folder:
        blends = {new: _blend(checkpoint, old, recipe) for new, old in chosen.tensors.items()}
        sources = [name for _, names in blends.values() for name in names]
        checkpoint.fetch([*chosen.tensors.values(), *sources])
        copy_assets(checkpoint.folder, folder)
        write_config(folder, config)
        _write_side_files(checkpoint, keep, folder)
        write_record(folder, record)
        tensors = []
        for new, old in chosen.tensors.items():
            part, (blend, names) = _kept_part(checkpoint, old, keep), blends[new]
            if blend is not None:
                data = functools.partial(_blended, checkpoint, blend, names, part.dtype)
                part = part._replace(data=data)
            if folds is not None:
                part = folds.replaced(part, old, checkpoint)
            tensors.append(part._replace(name=new))
        tensors += added
        with progress(f"chop to {out}", chosen.after.bytes, "B") as bar:
            write_safetensors(
                folder,
                tensors,
                max_shard_bytes,
                {"format": "pt"} | checkpoint.metadata,  # transformers refuses files without it
                bar.advance,
            )
    return chosen


def _write_side_files(checkpoint: Files, keep: Keep, folder: Path) -> None:
    """What tools say of quantized weights beside config.json, its names following the layers."""
    for name in SIDE_FILES:
        path = inside(checkpoint.folder, name)
        if path is not None:
            followed = followed_names(
                checkpoint.structure,
                read_json_object(path),
                checkpoint.num_layers,
                keep,
                checkpoint.tensors,
            )
            (folder / name).write_text(json.dumps(followed, indent=2) + "\n")


def _grown(size: Size, added: Sequence[Tensor]) -> Size:
    elements = sum(math.prod(tensor.shape) for tensor in added)
    return dataclasses.replace(
        size,
        parameters=None if size.parameters is None else size.parameters + elements,
        elements=size.elements + elements,
        tensors=size.tensors + len(added),
        bytes=size.bytes + sum(tensor.nbytes for tensor in added),
    )


def _blend(checkpoint: Files, name: str, recipe: Recipe) -> tuple[Blend | None, tuple[str, ...]]:
    """The blend that a kept tensor becomes and the tensors it is made of; none where it is copied,
    as constants beside the weights always are."""
    if not isinstance(checkpoint, Checkpoint):  # its layers are not merged, but copied
        return None, ()
    position = checkpoint.structure.layer_index(name)
    if position is None or is_buffer(checkpoint.family, name):
        return None, ()
    layer, stem = position
    blend = next((b for b in recipe if b.base == layer and not b.is_plain), None)
    layers = [source for source, _ in blend.weights] if blend else []
    return blend, tuple(stem.replace("{l}", str(source)) for source in layers)


def _blended(checkpoint: Files, blend: Blend, names: Sequence[str], dtype: str) -> np.ndarray:
    layers = [layer for layer, _ in blend.weights]
    arrays = dict(zip(layers, map(checkpoint.array, names), strict=True))
    return blend_arrays(arrays, blend, DTYPES[dtype])
