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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from chopjax.checkpoint import compressed_tensors, values
from chopjax.checkpoint.card import write_record
from chopjax.checkpoint.changed import write_changed
from chopjax.checkpoint.compressed_tensors import PACKED, SCALE, SHAPE, pack, packed_width
from chopjax.checkpoint.open import open_checkpoint
from chopjax.checkpoint.provenance import QUANTIZATION, add_entry, check_provenance, record_of
from chopjax.checkpoint.safetensors_file import NAMES, TensorInfo
from chopjax.checkpoint.source import Checkpoint
from chopjax.checkpoint.writer import MAX_SHARD_BYTES, Tensor
from chopjax.disk.atomic import check_free, new_folder
from chopjax.disk.files import expanded
from chopjax.errors import UserError, listing
from chopjax.models import parameters
from chopjax.models.formats import FORMATS, Kind, choose_block, codes_of, scales_of
from chopjax.progress import progress
from chopjax.sparsify.matrices import Matrix, all_matrices, check_types
from chopjax.sparsify.work import finishes, remove_finished

VERB = "quantize"
_OWN_LINEAR = ("falcon",)  # its FalconLinear
_PIECE = 1 << 20  # numbers of a matrix that are quantized at a time


class Job(NamedTuple):
    """A checkpoint to quantize. block: inputs that share a scale; 0: all of an output."""

    checkpoint: Checkpoint
    out: Path
    kind: Kind
    block: int
    matrices: list[Matrix]


def quantize_checkpoint(
    model: str,
    out: Path,
    kind: Kind,
    group: int | None = None,
    revision: str | None = None,
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> dict[str, Any]:
    """Write the checkpoint with every weight at the nearest code, and say what was done (`--json`
    has it).

    group: inputs that share a scale of int4's; None: the best that divides every width. Raises
    UserError, before anything is written where that can be.
    """
    begun = time.monotonic()
    job = begin(model, out, kind, group, revision, overwrite)
    job.checkpoint.fetch(job.checkpoint.tensors)
    done = finish(job, record(job, "nearest"), {}, overwrite, max_shard_bytes)
    return {"model": model, **done, "seconds": round(time.monotonic() - begun, 1)}


def begin(
    model: str, out: Path, kind: Kind, group: int | None, revision: str | None, overwrite: bool
) -> Job:
    """Look at everything that can be wrong before anything is read. Raises UserError."""
    out = Path(os.path.abspath(expanded(out)))
    checkpoint = open_checkpoint(model, revision)
    matrices, block = check(checkpoint, kind, group)
    check_provenance(checkpoint)
    remove_finished(out, VERB)
    check_free(out, VERB, overwrite, protect=[checkpoint.folder])
    return Job(checkpoint, out, kind, block, matrices)


def check(checkpoint: Checkpoint, kind: Kind, group: int | None) -> tuple[list[Matrix], int]:
    """What is quantized, and how many inputs share a scale. Raises UserError where the checkpoint
    cannot be quantized so, with the reason."""
    matrices = _matrices(checkpoint)
    inputs = {matrix.name: matrix.inputs for matrix in matrices}
    block = choose_block(kind, inputs, group)
    a_word = 1 if kind == "fp8" else 32 // FORMATS[kind].bits
    if problems := [f"{name} has {n:,} inputs" for name, n in inputs.items() if n % a_word]:
        raise UserError(
            f"--weights {kind}: {a_word} codes are packed into a word, which do not divide every "
            f"width of {checkpoint.name}:\n{listing(problems)}\nTake fp8, which fits any width"
        )
    return matrices, block


def record(job: Job, method: str) -> dict[str, Any]:
    """The entry in chopjax.json (card_quantization.py)."""
    shapes = [job.checkpoint.tensors[matrix.name].shape for matrix in job.matrices]
    return {
        "weights": job.kind,
        "group": job.block or None,
        "method": method,
        "format": compressed_tensors.FORMAT[job.kind],
        "matrices": len(shapes),
        "numbers": sum(map(math.prod, shapes)),
    }


def finish(
    job: Job,
    about: Mapping[str, Any],
    changed: Mapping[str, TensorInfo],
    overwrite: bool,
    max_shard_bytes: int,
    work: Path | None = None,
) -> dict[str, Any]:
    """Write OUT. about: what `record` says, and more. changed: matrices in place of the
    checkpoint's own, by name; what they hold is found among the codes again. work: OUT.partial,
    where there is one."""
    checkpoint, tensors = job.checkpoint, _tensors(job, changed)
    entry = add_entry(
        QUANTIZATION,
        record_of(checkpoint),
        checkpoint.name,
        checkpoint.revision,
        checkpoint.config.num_layers,
        about,
    )
    # Other modules that are Linear: the head, and what lies between a narrow table and the blocks.
    ignore = list(checkpoint.family.heads)
    if checkpoint.config.embed_projection:
        ignore += ["re:.*project_in$", "re:.*project_out$"]
    said = {compressed_tensors.KEY: compressed_tensors.describe(job.kind, job.block, ignore)}
    total = sum(tensor.nbytes for tensor in tensors)
    with new_folder(job.out, VERB, overwrite, protect=[checkpoint.folder]) as folder:
        with progress(f"quantize to {job.out}", total, "B") as bar:
            config = checkpoint.raw_config | said
            write_changed(folder, checkpoint, config, tensors, max_shard_bytes, bar.advance)
        write_record(folder, entry)
        if work is not None:
            finishes(work, folder)
    return {
        "revision": checkpoint.revision,
        "out": str(job.out),
        **about,
        "parameters": parameters.count(checkpoint.config),
        "bytes": {
            "before": sum(tensor.nbytes for tensor in checkpoint.tensors.values()),
            "after": total,
        },
    }


def _matrices(checkpoint: Checkpoint) -> list[Matrix]:
    """What is quantized. Raises UserError where the format has no words for it, and where it has
    been done."""
    config = checkpoint.config
    if checkpoint.decoded is not None:
        raise UserError(
            f"{checkpoint.name}: its weights are in {checkpoint.decoded} already, and codes of "
            "what codes stand for round twice; quantize what it was made from"
        )
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


def _tensors(job: Job, changed: Mapping[str, TensorInfo]) -> list[Tensor]:
    """All that is written, in the checkpoint's order."""
    kind, block = job.kind, job.block
    names, tensors = {matrix.name for matrix in job.matrices}, list[Tensor]()
    for name, found in job.checkpoint.tensors.items():
        if name not in names:
            tensors.append(Tensor(name, found.dtype, found.shape, found))
            continue
        (makes, reads), module = found.shape, name.removesuffix("weight")
        codes = functools.partial(_codes, found, changed.get(name, found), kind, block)
        if kind == "fp8":
            tensors.append(Tensor(name, NAMES[FORMATS[kind].codes], found.shape, codes))
        else:
            width = packed_width(kind, reads)
            shape = np.array(found.shape, np.int64)
            tensors.append(Tensor(module + PACKED, "I32", (makes, width), codes))
            tensors.append(Tensor(module + SHAPE, "I64", (2,), shape))
        each = reads // block if block else 1
        scales = functools.partial(_scales, found, kind, block)
        tensors.append(Tensor(module + SCALE, found.dtype, (makes, each), scales))
    return tensors


def _codes(own: TensorInfo, changed: TensorInfo, kind: Kind, block: int) -> Iterator[np.ndarray]:
    """Of the changed matrix, by the scales as they are written: the own one's, in its type."""
    changed_OI = changed.read()
    for first, rows_OI in _pieces(own):
        scales_OS = scales_of(rows_OI, kind, block, rows_OI.dtype)
        rows_OI = changed_OI[first : first + len(rows_OI)]
        codes_OI = codes_of(rows_OI, scales_OS, kind, block)
        yield codes_OI if kind == "fp8" else pack(codes_OI, kind)


def _scales(own: TensorInfo, kind: Kind, block: int) -> Iterator[np.ndarray]:
    for _, rows_OI in _pieces(own):
        yield scales_of(rows_OI, kind, block, rows_OI.dtype)


def _pieces(own: TensorInfo) -> Iterator[tuple[int, np.ndarray]]:
    """The first row of each, and the rows."""
    weight_OI = own.read()
    step = max(_PIECE // weight_OI.shape[1], 1)
    for first in range(0, len(weight_OI), step):
        rows_OI = weight_OI[first : first + step]
        if not values.is_finite(rows_OI):
            raise UserError(f"{own.file}: {own.name} holds NaN or infinity")
        yield first, rows_OI
