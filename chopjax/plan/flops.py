"""FLOPs of a decoder by named formulas. A multiplication with its addition counts as two.

Letters: L layers, N query heads, H head size, T sequence length in tokens, M the parameters that a
token is multiplied with (matrices: attention, feed-forward, projections and the head, tied or not;
neither the tables that are only looked up nor norms and biases, whose share is below a percent).
No jax.
"""

from __future__ import annotations

import dataclasses
import math

from chopjax.models import parameters
from chopjax.models.config import ModelConfig

FORWARD = "2·M + 4·L·N·H·T"
TRAINING = "6·M + 12·L·N·H·T"
SOURCE = (
    "PaLM (arXiv 2204.02311, appendix B): every token attends to all T, nothing is recomputed; "
    "M counts the parameters in matrix products"
)
CAUSAL_FORWARD = "2·M + 2·L·N·H·(T + 1)"
CAUSAL_TRAINING = "6·M + 6·L·N·H·(T + 1)"


@dataclasses.dataclass(frozen=True)
class Flops:
    """FLOPs per token, at one sequence length."""

    sequence_length: int
    matmul_params: int  # M
    forward: int  # FORWARD
    training: int  # TRAINING: the backward pass costs twice the forward one
    causal_forward: (
        int  # CAUSAL_FORWARD: token t attends to t + 1 positions, (T + 1) / 2 on average
    )
    causal_training: int  # CAUSAL_TRAINING


def matmul_params(config: ModelConfig) -> int:
    """M: parameters that take part in a matrix product for every token."""
    shapes = parameters.shapes(config)
    looked_up = {"embed/embedding", "embed/positions"}
    total = sum(
        math.prod(shape)
        for path, shape in shapes.items()
        if path not in looked_up and not _is_vector(path)
    )
    if config.tie_embeddings:
        total += math.prod(shapes["embed/embedding"])  # read once more, as the head
    return total


def _is_vector(path: str) -> bool:
    """Norms' scales and biases, which act element by element."""
    *parents, name = path.split("/")
    return name.endswith("bias") or any(parent.endswith("norm") for parent in parents)


def per_token(config: ModelConfig, sequence_length: int) -> Flops:
    """FLOPs per token of the whole model, head included."""
    matrices = matmul_params(config)
    width = config.num_layers * config.num_heads * config.head_dim
    forward = 2 * matrices + 4 * width * sequence_length
    causal = 2 * matrices + 2 * width * (sequence_length + 1)
    return Flops(sequence_length, matrices, forward, 3 * forward, causal, 3 * causal)
