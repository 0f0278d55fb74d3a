"""What a checkpoint takes: parameters, those that are not zero, bytes. No jax."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from chopjax.checkpoint.packed import Packed
from chopjax.checkpoint.safetensors_file import TensorInfo
from chopjax.checkpoint.source import Checkpoint
from chopjax.keep import Keep
from chopjax.models.formats import ZERO


class Size(NamedTuple):
    """not_zero: of the parameters; of quantized ones, those whose code is not. bytes: of tensors,
    as their files have them; zeros take the room that numbers take."""

    parameters: int
    not_zero: int
    bytes: int


def size_of(checkpoint: Checkpoint, keep: Keep | None = None) -> Size:
    """checkpoint: of open_to_score. keep: the layers that count, all by default. Each of their
    weights is read once."""
    bindings = checkpoint.match.bindings
    gone = {b.source for b in bindings if keep and b.layer is not None and b.layer not in keep}
    tensors = {name: found for name, found in checkpoint.tensors.items() if name not in gone}
    checkpoint.fetch(tensors)
    found = [tensors[binding.source] for binding in bindings if binding.source not in gone]
    return Size(
        sum(math.prod(tensor.shape) for tensor in found),
        sum(map(_not_zero, found)),
        sum(map(_bytes, tensors.values())),
    )


def _not_zero(tensor: TensorInfo) -> int:
    if not isinstance(tensor, Packed):
        return int(np.count_nonzero(tensor.read()))
    codes_OI, _ = tensor.codes()
    if tensor.held.kind == "int4":
        return int(np.count_nonzero(codes_OI != ZERO))
    return int(np.count_nonzero(codes_OI))


def _bytes(tensor: TensorInfo) -> int:
    if not isinstance(tensor, Packed):
        return tensor.nbytes
    shape = 0 if tensor.held.kind == "fp8" else 16  # two int64 (compressed_tensors.py)
    return tensor.nbytes + tensor.scales.nbytes + shape
