"""Parameters back to a Hugging Face checkpoint, tensor by tensor."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from chopjax.checkpoint import values
from chopjax.checkpoint.assets import copy_assets, write_config
from chopjax.checkpoint.card import write_record
from chopjax.checkpoint.describe import AdapterRun, Description, describe, places_of
from chopjax.checkpoint.dtypes import tensor_dtypes, with_dtype
from chopjax.checkpoint.orbax_folder import Unread
from chopjax.checkpoint.provenance import merged_onto
from chopjax.checkpoint.safetensors_file import DTYPES
from chopjax.checkpoint.source import Checkpoint
from chopjax.checkpoint.unread import Onto, unread
from chopjax.checkpoint.writer import MAX_SHARD_BYTES, Tensor, write_safetensors
from chopjax.disk.atomic import new_folder
from chopjax.errors import UserError, listing
from chopjax.models import families, parameters
from chopjax.models.config import ModelConfig
from chopjax.models.families.table import Binding, Naming, bind
from chopjax.models.parameters import Params
from chopjax.progress import progress


def export_model(
    model: str,
    out: Path,
    step: int | None = None,
    dtype: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    overwrite: bool = False,
    onto: Onto = "trained",
) -> Description:
    """Write an import or a training run as a Hugging Face checkpoint; memory holds one parameter.

    step: of a training run, the latest by default. dtype: as `export` has it; by default an
    import comes back in the types that it was found in, and so does what adapters stand on. onto:
    which of the weights under them they are added to (unread.py). Returns what was exported.
    """
    description = describe(model, step=step)
    if isinstance(description.weights, Checkpoint):
        raise UserError(f"{model} is a Hugging Face checkpoint already; there is nothing to export")
    provenance = description.provenance
    if isinstance(description.weights, AdapterRun):
        provenance = merged_onto(provenance, onto)
    elif onto != "trained":
        raise UserError(f"--onto is for training runs with adapters; {model} is none")
    export(
        description.config,
        description.raw_config,
        unread(description.weights, description.config, onto=onto),
        description.folder,
        out,
        description.naming,
        dtype,
        provenance,
        dtypes=description.dtypes,
        metadata=description.metadata,
        max_shard_bytes=max_shard_bytes,
        overwrite=overwrite,
        protect=(Path(model), *places_of(description)),
    )
    return description


def export(
    config: ModelConfig,
    raw_config: Mapping[str, Any],
    params: Params,
    assets: Path,
    out: Path,
    naming: Naming,
    dtype: str | None = None,
    provenance: Mapping[str, Any] | None = None,
    *,
    more: Sequence[Tensor] = (),
    dtypes: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    overwrite: bool = False,
    protect: tuple[Path, ...] = (),
) -> None:
    """Write a Hugging Face checkpoint folder `out`.

    params: arrays, or orbax_folder.Unread ones. assets: the folder with config.json and the
    tokenizer files, which come along byte for byte, save that config.json says what raw_config
    says.
    more: tensors that no decoder has, such as a classifier's head.
    dtype: "float32", "bfloat16" or "float16" for all tensors, and config.json says so; else
    dtypes: tensor → type as found at import; else the type that config.json states, float32 where
    it states none. protect: folders that --overwrite must not delete.

    Raises UserError where a value does not fit the type, and nothing is written then.
    """
    family = families.find(raw_config)
    flat = flatten_dict(params, sep="/")
    shapes = {path: tuple(leaf.shape) for path, leaf in flat.items()}
    if shapes != parameters.shapes(config):
        raise ValueError(f"the parameters do not have the shapes of {config}")
    bindings = bind(family, config, naming)
    types = tensor_dtypes([b.source for b in bindings], raw_config, dtypes, dtype)
    read = _Reader(config, flat)
    tensors = [
        Tensor(
            binding.source,
            types[binding.source],
            binding.row.source_shape(read.sizes),
            functools.partial(read.tensor, binding, DTYPES[types[binding.source]]),
        )
        for binding in bindings
    ] + list(more)
    total = sum(tensor.nbytes for tensor in tensors)
    with (
        new_folder(out, "export", overwrite, protect=(assets, *protect)) as folder,
        progress(f"write {out}", total, "B") as bar,
    ):
        copy_assets(assets, folder)
        write_config(folder, raw_config if dtype is None else with_dtype(raw_config, dtype))
        write_record(folder, provenance)
        write_safetensors(folder, tensors, max_shard_bytes, metadata, bar.advance)
        if read.too_large:
            raise UserError(
                f"{out}: values too large for the type to be written, in\n"
                f"{listing(read.too_large)}\nChoose another with --dtype"
            )


class _Reader:
    """Cuts tensors out of parameters. An Unread one is held until another row's turn."""

    def __init__(self, config: ModelConfig, flat: Mapping[str, Any]):
        self.sizes = parameters.sizes(config)
        self.flat = flat
        self.held: dict[str, Any] = {}
        self.too_large: list[str] = []

    def tensor(self, binding: Binding, dtype: np.dtype[Any]) -> np.ndarray:
        """A tensor in the checkpoint's layout and type."""
        targets = binding.row.targets
        leaves = [self.flat[path] for path in targets]
        one = [leaf.read_one for leaf in leaves if isinstance(leaf, Unread) and leaf.read_one]
        if binding.place and len(one) == len(targets):
            return self._tensor(binding, dtype, [read(binding.place) for read in one])
        if not self.held.keys() >= set(targets):
            self.held = {}  # before the next are read
            self.held = {path: self._whole(path) for path in targets}
        arrays = [array[binding.place] for array in (self.held[path] for path in targets)]
        return self._tensor(binding, dtype, arrays)

    def _tensor(
        self, binding: Binding, dtype: np.dtype[Any], arrays: list[np.ndarray]
    ) -> np.ndarray:
        """Of parameters where the tensor stands."""
        view = binding.row.to_tensor([np.asarray(array) for array in arrays], self.sizes)
        result = values.contiguous(view, dtype)
        if (
            dtype != view.dtype
            and not values.is_finite(result)
            and values.is_finite(values.contiguous(view))
        ):
            self.too_large.append(f"{binding.source} ({dtype})")
        return result

    def _whole(self, path: str) -> Any:
        leaf = self.flat[path]
        array = leaf.read() if isinstance(leaf, Unread) else leaf
        if not getattr(array, "is_fully_addressable", True):
            raise UserError(
                f"{path} lies on several hosts; save a checkpoint and export that from one host"
            )
        return array
