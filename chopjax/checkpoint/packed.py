"""Opening what `chopjax quantize` wrote: to score it, when codes stay codes, or to compute with the
numbers that they stand for, as with any checkpoint in floating point. No jax.

A quantized matrix stands among the tensors under the name that it had, with its shape and the type
of its scales. To be scored it is Packed, and `codes` reads it; else it is Unpacked, and config.json
has no word of codes. Everything else is as in any checkpoint.

Axes: O outputs, I inputs, S scales of an output.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from chopjax.checkpoint.compressed_tensors import (
    PACKED,
    SCALE,
    SHAPE,
    Held,
    held_as,
    unpack,
    without_codes,
)
from chopjax.checkpoint.computed import translate
from chopjax.checkpoint.safetensors_file import DTYPES, TensorInfo
from chopjax.checkpoint.source import Checkpoint, Found, Opening, assemble
from chopjax.errors import UserError, listing
from chopjax.models import parameters
from chopjax.models.formats import FORMATS, decode
from chopjax.progress import say

_PIECE = 1 << 20  # numbers that are made at a time


@dataclasses.dataclass(frozen=True)
class Packed(TensorInfo):
    """A matrix that two tensors of the file make: codes, where this one's bytes are, and scales."""

    held: Held
    stored: TensorInfo
    scales: TensorInfo

    def open(self) -> BinaryIO:
        return self.stored.open()

    def read(self) -> np.ndarray:
        raise TypeError(f"{self.name} is quantized: `codes` reads it")

    def codes(self) -> tuple[np.ndarray, np.ndarray]:
        """Codes [O, I] and float32 scales [O, S], as `formats.encode` gives them."""
        codes_OI = self.stored.read()
        if self.held.kind != "fp8":
            codes_OI = unpack(codes_OI, self.held.kind)
        return codes_OI, self.scales.read().astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Unpacked(TensorInfo):
    """The numbers of a Packed matrix, in the type of its scales. They are in no file: `nbytes` is
    what they take, and reading makes them."""

    packed: Packed

    def open(self) -> BinaryIO:
        raise TypeError(f"{self.name} is made of codes: `read` and `pieces` give it")

    def read(self) -> np.ndarray:
        made_OI, row = np.empty(self.shape, DTYPES[self.dtype]), 0
        for rows_OI in self.pieces():
            made_OI[row : row + len(rows_OI)] = rows_OI
            row += len(rows_OI)
        return made_OI

    def pieces(self) -> Iterator[np.ndarray]:
        """One after the other, of whole rows."""
        (kind, block), dtype = self.packed.held, DTYPES[self.dtype]
        codes_OI, scales_OS = self.packed.codes()
        step = max(_PIECE // codes_OI.shape[1], 1)
        for first in range(0, len(codes_OI), step):
            rows = slice(first, first + step)
            yield decode(codes_OI[rows], scales_OS[rows], kind, block, dtype)


def say_decoded(weights: object) -> None:
    """Of what a Description calls weights: for whoever writes what comes of them."""
    if isinstance(weights, Checkpoint) and (kind := weights.decoded):
        say(
            f"{weights.name} has its weights in {kind}: they are read as the numbers that the "
            f"codes stand for, and what comes of them is in floating point. `chopjax quantize "
            f"--weights {kind}` quantizes that again"
        )


def _unpacked(packed: Packed) -> Unpacked:
    nbytes = math.prod(packed.shape) * DTYPES[packed.dtype].itemsize
    return Unpacked(packed.name, packed.dtype, packed.shape, packed.file, 0, nbytes, packed)


def _check(raw: Mapping[str, Any]) -> None:
    translate(without_codes(raw))


def _floats(found: Found) -> Checkpoint:
    """Of any checkpoint; what `chopjax quantize` wrote as the numbers that its codes stand for."""
    checkpoint, held = _codes(found), held_as(found.raw_config)
    if held is None:
        return checkpoint
    tensors = {
        name: _unpacked(tensor) if isinstance(tensor, Packed) else tensor
        for name, tensor in checkpoint.tensors.items()
    }
    raw = without_codes(checkpoint.raw_config)
    return dataclasses.replace(checkpoint, tensors=tensors, raw_config=raw, decoded=held.kind)


def _codes(found: Found) -> Checkpoint:
    """Of any checkpoint; what `chopjax quantize` wrote as it lies in the files."""
    held = held_as(found.raw_config)
    if held is None:
        return assemble(found)
    tensors = _matrices(found, held)

    def fetch(names: Iterable[str]) -> None:
        if found.fetcher is not None:
            parts = [tensors[name] for name in names]
            codes = [part.stored.name if isinstance(part, Packed) else part.name for part in parts]
            scales = [part.scales.name for part in parts if isinstance(part, Packed)]
            found.fetcher([*codes, *scales])

    computed = without_codes(found.raw_config)
    checkpoint = assemble(
        dataclasses.replace(found, tensors=tensors, raw_config=computed, fetcher=fetch)
    )
    _check_kernels(checkpoint)
    return dataclasses.replace(checkpoint, raw_config=found.raw_config)


def _check_kernels(checkpoint: Checkpoint) -> None:
    """Raises UserError unless the blocks' kernels are all quantized, and nothing else is."""
    kernels = parameters.kernels(checkpoint.config)
    packed = {name for name, found in checkpoint.tensors.items() if isinstance(found, Packed)}
    expected = {
        binding.source
        for binding in checkpoint.match.bindings
        if (path := binding.row.targets[0]) in kernels
        and binding.row.is_linear(kernels[path].inputs)
    }
    if others := sorted(packed ^ expected):
        raise UserError(
            f"{checkpoint.name}: `chopjax quantize` would have quantized these, and did not, or "
            f"the other way round:\n{listing(others)}"
        )


def _matrices(found: Found, held: Held) -> dict[str, TensorInfo]:
    """The tensors, those of a matrix as one. Raises UserError for those that do not fit."""
    kind, block = held
    last = "weight" if kind == "fp8" else PACKED
    code_type = "F8_E4M3" if kind == "fp8" else "I32"
    tensors: dict[str, TensorInfo] = {}
    beside: set[str] = set()
    problems = []
    for name, stored in found.tensors.items():
        module, _, end = name.rpartition(".")
        scales = found.tensors.get(f"{module}.{SCALE}")
        if end != last or scales is None:
            tensors[name] = stored
            continue
        beside |= {scales.name, f"{module}.{SHAPE}"}
        if stored.dtype != code_type or len(stored.shape) != 2 or len(scales.shape) != 2:
            problems.append(f"{name} is {stored.dtype} {list(stored.shape)}")
            continue
        makes, reads = stored.shape
        if kind != "fp8":
            reads = reads * 32 // FORMATS[kind].bits
        if scales.shape != (makes, reads // block if block else 1):
            problems.append(f"{scales.name} is {list(scales.shape)}")
            continue
        own = f"{module}.weight"
        where = stored.file, stored.start, stored.nbytes
        tensors[own] = Packed(own, scales.dtype, (makes, reads), *where, held, stored, scales)
    if problems:
        raise UserError(
            f"{found.name}: not as `chopjax quantize --weights {kind}` writes it:\n"
            f"{listing(problems)}"
        )
    return {name: tensor for name, tensor in tensors.items() if name not in beside}


TO_SCORE = Opening(_check, _codes)
TO_COMPUTE = Opening(_check, _floats)
