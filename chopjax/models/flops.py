"""Floating-point operations of a decoder, by one formula that everything quotes. No jax.

Only matrix products count, a multiply-add as two operations. Model FLOPs: what the computation
asks for, whatever a backward pass computes twice (PaLM, arXiv 2204.02311, appendix B), with causal
attention counted as what it needs, half of the T x T scores.
"""

from __future__ import annotations

import math

from chopjax.models import parameters
from chopjax.models.config import ModelConfig

FORMULA = "6·N_matmul + 6·L·heads·head_dim·T FLOPs a token (causal attention)"


def matmul_parameters(config: ModelConfig) -> int:
    """Parameters that every token is multiplied with: all but lookups, norms and biases.

    The head counts, tied or not.
    """
    total = config.table_dim * config.vocab_size
    for path, shape in parameters.shapes(config).items():
        *parents, name = path.split("/")
        is_lookup = path in ("embed/embedding", "embed/positions", "head/kernel")
        is_norm = any(parent.endswith("norm") for parent in parents)
        if not (is_lookup or is_norm or name.endswith("bias")):
            total += math.prod(shape)
    return total


def forward_per_token(config: ModelConfig, length: int) -> int:
    """Of a forward pass over a sequence of `length` tokens, divided by its tokens."""
    attention = 2 * config.num_layers * config.num_heads * config.head_dim * length
    return 2 * matmul_parameters(config) + attention


def training_per_token(config: ModelConfig, length: int) -> int:
    """Forward and backward: three times the forward pass."""
    return 3 * forward_per_token(config, length)
