"""What a decoder computes, as one frozen value.

Every family of Hugging Face checkpoints (chopjax/models/families) translates its config.json into
a ModelConfig; everything else in chopjax reads only this.
"""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary position embedding (arXiv 2104.09864), with the scalings that transformers defines.

    `kind` names the scaling; the fields after `theta` are read by the kinds that they name.
    """

    kind: Literal["default", "linear", "llama3", "yarn"] = "default"
    theta: float = 10_000.0
    factor: float = 1.0  # linear, llama3, yarn
    original_max_positions: int = 0  # llama3, yarn: the context length before scaling
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float = 1.0  # yarn: multiplies cos and sin
    truncate: bool = True  # yarn: round the correction range to whole dimensions


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer. Sizes are counts of elements; letters are the axis names used
    in `parameters.py` and in array names: V D L N K H F P E."""

    family: str
    vocab_size: int  # V
    embed_dim: int  # D, the width of the residual stream
    num_layers: int  # L
    num_heads: int  # N
    num_kv_heads: int  # K
    head_dim: int  # H
    mlp_dim: int  # F
    max_positions: int  # the context length; P = max_positions + position_offset
    norm: Literal["rms", "layer"]
    norm_epsilon: float
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"]
    tie_embeddings: bool
    rope: Rope | None = None  # None: learned positions
    position_offset: int = 0  # OPT's learned positions start at row 2
    gated_mlp: bool = False
    attention_bias: bool = False  # on query, key, value and output
    mlp_bias: bool = False
    norm_affine: bool = True  # norms have a scale (and, for layer norm, a bias)
    pre_norm: bool = True  # False: OPT-350m's norms after the residual sum
    final_norm: bool = True
    embed_projection: int | None = None  # E: OPT's word_embed_proj_dim where it differs from D
    bos_token_id: int | None = None
    eos_token_id: int | None = None  # where config.json lists several, the first

    @property
    def table_dim(self) -> int:
        """Width of the embedding table and of what the head reads: E where given, else D."""
        return self.embed_projection or self.embed_dim

    def with_layers(self, num_layers: int) -> ModelConfig:
        """The same decoder with another number of layers."""
        return dataclasses.replace(self, num_layers=num_layers)
