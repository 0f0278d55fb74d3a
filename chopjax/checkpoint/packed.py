"""Opening what `chopjax quantize` wrote, to score it: codes stay codes. No jax.

A quantized matrix stands among the tensors under the name that it had, with its shape and the type
of its scales, and `codes` reads it. Everything else is as in any checkpoint.

Axes: O outputs, I inputs, S scales of an output.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO

import numpy as np

from chopjax.checkpoint.compressed_tensors import (
    KEY,
    PACKED,
    SCALE,
    SHAPE,
    Held,
    held_as,
    unpack,
)
from chopjax.checkpoint.computed import translate
from chopjax.checkpoint.safetensors_file import TensorInfo
from chopjax.checkpoint.source import Checkpoint, Found, Opening, assemble
from chopjax.errors import UserError, listing
from chopjax.models import parameters
from chopjax.models.formats import FORMATS


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


def _check(raw: Mapping[str, Any]) -> None:
    translate(_computed(raw))


def _computed(raw: Mapping[str, Any]) -> dict[str, Any]:
    """config.json without the words of `chopjax quantize`; anybody else's stay, and are refused."""
    return {key: value for key, value in raw.items() if key != KEY or held_as(raw) is None}


def _assemble(found: Found) -> Checkpoint:
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

    computed = _computed(found.raw_config)
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


TO_SCORE = Opening(_check, _assemble)
