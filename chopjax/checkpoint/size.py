"""What a checkpoint takes: parameters, those that are not zero, bytes. No jax."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from chopjax.checkpoint.packed import Packed
from chopjax.checkpoint.safetensors_file import TensorInfo
from chopjax.checkpoint.source import Checkpoint
from chopjax.models.formats import ZERO


class Size(NamedTuple):
    """not_zero: of the parameters; of quantized ones, those whose code is not. bytes: of tensors,
    as their files have them; zeros take the room that numbers take."""

    parameters: int
    not_zero: int
    bytes: int


def size_of(checkpoint: Checkpoint) -> Size:
    """checkpoint: of open_to_score. Every weight is read once."""
    checkpoint.fetch(checkpoint.tensors)
    found = [checkpoint.tensors[binding.source] for binding in checkpoint.match.bindings]
    return Size(
        sum(int(np.prod(tensor.shape)) for tensor in found),
        sum(map(_not_zero, found)),
        sum(map(_bytes, checkpoint.tensors.values())),
    )


def _not_zero(tensor: TensorInfo) -> int:
    if not isinstance(tensor, Packed):
        return int(np.count_nonzero(tensor.read()))
    codes_OI, _ = tensor.codes()
    zero = ZERO if tensor.held.kind == "int4" else 0
    return int(np.count_nonzero(codes_OI != codes_OI.dtype.type(zero)))


def _bytes(tensor: TensorInfo) -> int:
    if not isinstance(tensor, Packed):
        return tensor.nbytes
    shape = 0 if tensor.held.kind == "fp8" else 16  # two int64 (compressed_tensors.py)
    return tensor.nbytes + tensor.scales.nbytes + shape
