"""FLOPs per token under the conventions that people quote, side by side. No jax.

models/flops.py has the one that chopjax's own MFU uses: causal attention, as much as it needs.
Many published numbers use PaLM's, in which every token attends to all T positions.
"""

from __future__ import annotations

import dataclasses

from chopjax.models import flops
from chopjax.models.config import ModelConfig

PALM = "6·N_matmul + 12·L·heads·head_dim·T FLOPs a token (PaLM, arXiv 2204.02311, appendix B)"


@dataclasses.dataclass(frozen=True)
class Flops:
    """FLOPs per token of the whole model, head included. Training is three times forward."""

    formula: str  # of training
    forward: int
    training: int


def conventions(config: ModelConfig, sequence_length: int) -> tuple[Flops, Flops]:
    """Causal attention (chopjax's MFU) and PaLM's convention, at one sequence length in tokens."""
    causal = flops.forward_per_token(config, sequence_length)
    width = config.num_layers * config.num_heads * config.head_dim
    full = 2 * flops.matmul_parameters(config) + 4 * width * sequence_length
    return Flops(flops.FORMULA, causal, 3 * causal), Flops(PALM, full, 3 * full)
