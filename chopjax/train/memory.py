"""What a training state takes, over all devices together. Activations come on top. No jax."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from chopjax.models import parameters
from chopjax.models.config import ModelConfig

DTYPE_BYTES = {"float32": 4, "bfloat16": 2}

Optimizer = Literal["lion", "adamw"]


@dataclasses.dataclass(frozen=True)
class TrainingMemory:
    """Bytes of a training state.

    Lion (arXiv 2302.06675) keeps one momentum. AdamW keeps a first moment, in momentum_dtype, and
    a second one, in the parameters' type (as optax does). Gradients have the parameters' type.
    """

    optimizer: Optimizer
    param_dtype: str
    momentum_dtype: str
    params: int
    gradients: int
    moments: int

    @property
    def total(self) -> int:
        return self.params + self.gradients + self.moments


def training(
    config: ModelConfig, optimizer: Optimizer, param_dtype: str, momentum_dtype: str
) -> TrainingMemory:
    """Bytes of parameters, gradients and the optimizer's moments, where all weights are trained."""
    return of_numbers(parameters.count(config), optimizer, param_dtype, momentum_dtype)


def of_numbers(
    count: int, optimizer: Optimizer, param_dtype: str, momentum_dtype: str
) -> TrainingMemory:
    """The same for so many numbers that are trained."""
    params = count * DTYPE_BYTES[param_dtype]
    moments = count * DTYPE_BYTES[momentum_dtype]
    if optimizer == "adamw":
        moments += params
    return TrainingMemory(optimizer, param_dtype, momentum_dtype, params, params, moments)


def of_scores(config: ModelConfig) -> int:
    """Bytes of DimCHOP's state (dimchop.py): three float32 numbers a weight of the blocks'
    matrices."""
    shapes = parameters.shapes(config)
    return 3 * 4 * sum(math.prod(shapes[path]) for path in parameters.kernels(config))


def choices(config: ModelConfig) -> list[TrainingMemory]:
    """Lion and AdamW with each choice of types that a training run has."""
    return [
        training(config, optimizer, param_dtype, momentum_dtype)
        for optimizer in ("lion", "adamw")
        for param_dtype in DTYPE_BYTES
        for momentum_dtype in DTYPE_BYTES
    ]
