"""Floating-point operations of a decoder, by one formula that everything quotes. No jax.

Only matrix products count, a multiply-add as two operations. Model FLOPs: what the computation
asks for, whatever a backward pass computes twice (PaLM, arXiv 2204.02311, appendix B), with causal
attention counted as what it needs, half of the T x T scores.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from chopjax.models import parameters
from chopjax.models.config import ModelConfig

FORMULA = "6·N_matmul + 6·L·heads·head_dim·T FLOPs a token (causal attention, within windows)"
ADAPTED = (
    "4·N_matmul + 6·N_adapters + 6·L·heads·head_dim·T FLOPs a token (adapters; causal attention)"
)
MASKED = (
    "4·N_matmul + 2·N_adapted + 6·L·heads·head_dim·T FLOPs a token (adapters behind masks, which "
    "need the gradients of whole matrices; causal attention)"
)
TAUGHT = ", and of the teacher 2·N_matmul + 2·L·heads·head_dim·T"  # behind one of them
PALM = "6·N_matmul + 12·L·heads·head_dim·T FLOPs a token (PaLM, arXiv 2204.02311, appendix B)"


def matmul_parameters(config: ModelConfig) -> int:
    """Parameters that every token is multiplied with: all but lookups, norms and biases.

    The head counts, tied or not; of experts those that a token is sent to, and their router whole.
    """
    total = config.table_dim * config.vocab_size
    for path, shape in parameters.active_shapes(config).items():
        *parents, name = path.split("/")
        is_lookup = path in ("embed/embedding", "embed/positions", "head/kernel")
        is_norm = any(parent.endswith("norm") for parent in parents)
        if not (is_lookup or is_norm or name.endswith("bias")):
            total += math.prod(shape)
    return total


def forward_per_token(config: ModelConfig, length: int) -> int:
    """Of a forward pass over a sequence of `length` tokens, divided by its tokens."""

    def seen(window: int | None) -> float:
        """Keys, on average over the sequence: half of it, or W - W²/2T within a window."""
        within = min(window or length, length)
        return within - within * within / (2 * length)

    return 2 * matmul_parameters(config) + _attention(config, seen)


def layer_per_token(config: ModelConfig, length: int) -> float:
    """Of a layer's forward pass, as the mean over layers: the whole decoder's without its head."""
    head = 2 * config.table_dim * config.vocab_size
    return (forward_per_token(config, length) - head) / config.num_layers


def decode_per_token(config: ModelConfig, slots: int) -> int:
    """Of one token behind a cache with so many slots: no causal half."""
    return 2 * matmul_parameters(config) + _attention(config, lambda w: min(w or slots, slots))


def _attention(config: ModelConfig, seen: Callable[[int | None], float]) -> int:
    """Of a token whose query meets `seen` keys, by a layer's window."""
    keys = sum(seen(layer.window) for layer in config.layers)
    return round(4 * config.num_heads * config.head_dim * keys)


def training_per_token(config: ModelConfig, length: int) -> int:
    """Forward and backward: three times the forward pass."""
    return 3 * forward_per_token(config, length)


def adapters_per_token(config: ModelConfig, length: int, added: int) -> int:
    """Of a training step that moves `added` numbers in adapters and none of the decoder's own:
    forward, backward to every activation, and the adapters' own gradients. A frozen kernel costs
    4 FLOPs a parameter where a trained one costs 6; attention has no kernels, and costs the same.
    """
    return training_per_token(config, length) - 2 * matmul_parameters(config) + 6 * added


def masked_adapters_per_token(config: ModelConfig, length: int, adapted: int) -> int:
    """The same where adapters add nothing to zeros: the sum is formed once a step and its gradient
    is that of a whole matrix. adapted: parameters of the matrices that have adapters."""
    return training_per_token(config, length) - 2 * (matmul_parameters(config) - adapted)


def teaching_per_token(teacher: ModelConfig, length: int, head: bool = True) -> int:
    """What a teacher adds to a training step: its forward pass, with its head or without."""
    products = 0 if head else 2 * teacher.table_dim * teacher.vocab_size
    return forward_per_token(teacher, length) - products


@dataclasses.dataclass(frozen=True)
class Flops:
    """FLOPs per token of the whole model, head included. Training is three times forward."""

    formula: str  # of training
    forward: int
    training: int


def conventions(config: ModelConfig, sequence_length: int) -> tuple[Flops, Flops]:
    """Causal attention (chopjax's MFU) and PaLM's convention, at one sequence length in tokens."""
    causal = forward_per_token(config, sequence_length)
    width = config.num_layers * config.num_heads * config.head_dim
    full = 2 * matmul_parameters(config) + 4 * width * sequence_length
    return Flops(FORMULA, causal, 3 * causal), Flops(PALM, full, 3 * full)
