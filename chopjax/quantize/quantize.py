"""`chopjax quantize`: a checkpoint whose blocks' matrices are in four or eight bits.

Tensor by tensor: memory holds pieces of one. All that is no matrix of a block goes from file to
file, byte for byte. No jax.

Axes: O outputs, I inputs.
"""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chopjax.checkpoint import compressed_tensors, values
from chopjax.checkpoint.assets import copy_assets, write_config
from chopjax.checkpoint.card import write_record
from chopjax.checkpoint.compressed_tensors import PACKED, SCALE, SHAPE, pack, packed_width
from chopjax.checkpoint.open import open_checkpoint
from chopjax.checkpoint.provenance import QUANTIZATION, add_entry, read_provenance
from chopjax.checkpoint.safetensors_file import NAMES
from chopjax.checkpoint.source import Checkpoint
from chopjax.checkpoint.writer import MAX_SHARD_BYTES, Tensor, write_safetensors
from chopjax.disk.atomic import check_free, new_folder
from chopjax.disk.files import expanded
from chopjax.errors import UserError, listing
from chopjax.models import parameters
from chopjax.models.formats import FORMATS, Kind, choose_block, encode, scales_of
from chopjax.progress import progress
from chopjax.sparsify.matrices import Matrix, all_matrices, check_types

VERB = "quantize"
_OWN_LINEAR = ("falcon",)  # its FalconLinear
_PIECE = 1 << 20  # numbers of a matrix that are quantized at a time


def quantize_checkpoint(
    model: str,
    out: Path,
    kind: Kind,
    group: int | None = None,
    revision: str | None = None,
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> dict[str, Any]:
    """Write the quantized checkpoint and say what was done (`--json` has it).

    group: inputs that share a scale of int4's; None: the best that divides every width. Raises
    UserError, before anything is written where that can be.
    """
    begun = time.monotonic()
    out = Path(os.path.abspath(expanded(out)))
    checkpoint = open_checkpoint(model, revision)
    matrices = _matrices(checkpoint)
    block = choose_block(kind, {matrix.name: matrix.inputs for matrix in matrices}, group)
    check_free(out, VERB, overwrite, protect=[checkpoint.folder])
    checkpoint.fetch(checkpoint.tensors)
    about = {
        "weights": kind,
        "group": block or None,
        "method": "nearest",
        "format": compressed_tensors.FORMAT[kind],
        "matrices": len(matrices),
        "numbers": sum(math.prod(checkpoint.tensors[matrix.name].shape) for matrix in matrices),
    }
    tensors = _tensors(checkpoint, {matrix.name for matrix in matrices}, kind, block)
    _write(checkpoint, out, about, tensors, overwrite, max_shard_bytes)
    return {
        "model": model,
        "revision": checkpoint.revision,
        "out": str(out),
        **about,
        "parameters": parameters.count(checkpoint.config),
        "bytes": {
            "before": sum(tensor.nbytes for tensor in checkpoint.tensors.values()),
            "after": sum(tensor.nbytes for tensor in tensors),
        },
        "seconds": round(time.monotonic() - begun, 1),
    }


def _matrices(checkpoint: Checkpoint) -> list[Matrix]:
    """What is quantized. Raises UserError where the format has no words for it."""
    config = checkpoint.config
    instead = "--weights of score, perplexity, generate and latency quantizes it while loading"
    if config.experts is not None:
        raise UserError(
            f"{checkpoint.name}: compressed-tensors describes Linear modules, and transformers "
            f"holds the experts of {config.family} in arrays with three axes; {instead}"
        )
    if config.family in _OWN_LINEAR:
        raise UserError(
            f"{checkpoint.name}: the modules of {config.family} multiply with their weight "
            f"themselves, and transformers does not find it where it is packed; {instead}"
        )
    matrices, kernels = all_matrices(checkpoint), parameters.kernels(config)
    others = [
        f"{matrix.name} {list(checkpoint.tensors[matrix.name].shape)}"
        for matrix in matrices
        if not matrix.binding.row.is_linear(kernels[matrix.kernels[0]].inputs)
    ]
    if others:
        raise UserError(
            f"{checkpoint.name}: compressed-tensors describes Linear modules, whose weights are "
            f"[out, in], and {config.family} has [in, out] (Conv1D):\n{listing(others)}\n{instead}"
        )
    check_types(checkpoint, matrices, "quantized")
    return matrices


def _tensors(checkpoint: Checkpoint, names: set[str], kind: Kind, block: int) -> list[Tensor]:
    """All that is written, in the checkpoint's order. names: of matrices."""
    tensors: list[Tensor] = []
    for name, found in checkpoint.tensors.items():
        if name not in names:
            tensors.append(Tensor(name, found.dtype, found.shape, found))
            continue
        (makes, reads), module = found.shape, name.removesuffix("weight")
        codes = functools.partial(_codes, checkpoint, name, kind, block)
        scales = functools.partial(_scales, checkpoint, name, kind, block)
        if kind == "fp8":
            tensors.append(Tensor(name, NAMES[FORMATS[kind].codes], found.shape, codes))
        else:
            width = packed_width(kind, reads)
            shape = np.array(found.shape, np.int64)
            tensors.append(Tensor(module + PACKED, "I32", (makes, width), codes))
            tensors.append(Tensor(module + SHAPE, "I64", (2,), shape))
        each = reads // block if block else 1
        tensors.append(Tensor(module + SCALE, found.dtype, (makes, each), scales))
    return tensors


def _codes(checkpoint: Checkpoint, name: str, kind: Kind, block: int) -> Iterator[np.ndarray]:
    """Found with the scales as they are written, rounded to the weights' type."""
    for rows_OI in _pieces(checkpoint, name):
        codes_OI, _ = encode(rows_OI, kind, block, rows_OI.dtype)
        yield codes_OI if kind == "fp8" else pack(codes_OI, kind)


def _scales(checkpoint: Checkpoint, name: str, kind: Kind, block: int) -> Iterator[np.ndarray]:
    for rows_OI in _pieces(checkpoint, name):
        yield scales_of(rows_OI, kind, block, rows_OI.dtype)


def _pieces(checkpoint: Checkpoint, name: str) -> Iterator[np.ndarray]:
    weight_OI = checkpoint.array(name)
    step = max(_PIECE // weight_OI.shape[1], 1)
    for first in range(0, len(weight_OI), step):
        rows_OI = weight_OI[first : first + step]
        if not values.is_finite(rows_OI):
            raise UserError(f"{checkpoint.name}: {name} holds NaN or infinity")
        yield rows_OI


def _write(
    checkpoint: Checkpoint,
    out: Path,
    about: dict[str, Any],
    tensors: Sequence[Tensor],
    overwrite: bool,
    max_shard_bytes: int,
) -> None:
    record = add_entry(
        QUANTIZATION,
        read_provenance(checkpoint.folder),
        checkpoint.name,
        checkpoint.revision,
        checkpoint.config.num_layers,
        about,
    )
    # Other modules that are Linear: the head, and what lies between a narrow table and the blocks.
    ignore = list(checkpoint.family.heads)
    if checkpoint.config.embed_projection:
        ignore += ["re:.*project_in$", "re:.*project_out$"]
    quantization = compressed_tensors.describe(about["weights"], about["group"] or 0, ignore)
    with (
        new_folder(out, VERB, overwrite, protect=[checkpoint.folder]) as folder,
        progress(f"quantize to {out}", sum(tensor.nbytes for tensor in tensors), "B") as bar,
    ):
        copy_assets(checkpoint.folder, folder)
        write_config(folder, checkpoint.raw_config | {compressed_tensors.KEY: quantization})
        write_record(folder, record)
        metadata = {"format": "pt"} | checkpoint.metadata
        write_safetensors(folder, tensors, max_shard_bytes, metadata, bar.advance)
