"""What a decoder computes, as one frozen value.

Every family of Hugging Face checkpoints (chopjax/models/families) translates its config.json into
a ModelConfig; everything else in chopjax reads only this.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary position embedding (arXiv 2104.09864), with the scalings that transformers defines.

    `kind` names the scaling; the fields after `theta` are read by the kinds that they name.
    """

    kind: Literal["default", "linear", "llama3", "yarn", "longrope"] = "default"
    theta: float = 10_000.0
    factor: float = 1.0  # linear, llama3, yarn
    original_max_positions: int = 0  # llama3, yarn: the context length before scaling
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float = 1.0  # yarn, longrope: multiplies cos and sin
    truncate: bool = True  # yarn: round the correction range to whole dimensions
    dims: int | None = None  # how many of a head's dimensions turn, the first ones; None: all
    interleaved: bool = False  # pairs (0, 1), (2, 3), … and not (i, i + dims / 2)
    stretch: tuple[float, ...] = ()  # longrope: every pair's frequency is divided by its own


@dataclasses.dataclass(frozen=True)
class Norm:
    """RMSNorm (arXiv 1910.07467) or layer norm (arXiv 1607.06450)."""

    kind: Literal["rms", "layer"]
    epsilon: float
    scale: bool = True
    bias: bool = False
    offset: float = 0.0  # added to the stored scale: 1 for Gemma and Nemotron


@dataclasses.dataclass(frozen=True)
class QkNorm:
    """The norm of queries and keys.

    over: what is normalised together and shares a scale. "head": a head's H numbers, one scale for
    all heads; "each_head": likewise, a scale of its own for every head; "all_heads": the numbers of
    all heads.
    """

    norm: Norm
    over: Literal["head", "each_head", "all_heads"] = "head"
    after_rope: bool = False  # HunYuan


@dataclasses.dataclass(frozen=True)
class Layer:
    """What may differ from layer to layer."""

    window: int | None = None  # a token sees itself and the window - 1 before it; None: all
    rope: Rope | None = None  # None: queries and keys are not turned


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer. Sizes are counts of elements; letters are the axis names used
    in `parameters.py` and in array names: V D L N K H F P E."""

    family: str
    vocab_size: int  # V
    embed_dim: int  # D, the width of the residual stream
    layers: tuple[Layer, ...]  # L of them
    num_heads: int  # N
    num_kv_heads: int  # K
    head_dim: int  # H
    mlp_dim: int  # F
    max_positions: int  # the context length; P = max_positions + position_offset
    norm: Norm
    activation: Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"]
    tie_embeddings: bool
    positions: Literal["rope", "learned", "alibi"] = "rope"
    position_offset: int = 0  # OPT's learned positions start at row 2
    gated_mlp: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    # Where a block's norms stand: before attention and feed-forward; after them (OLMo 2); both
    # (Gemma 2); or after the sum with the residual stream (OPT-350m).
    norm_place: Literal["before", "after", "both", "residual"] = "before"
    # Attention and feed-forward beside each other, behind one norm (GPT-J) or two (GPT-NeoX).
    parallel: Literal["no", "one_norm", "two_norms"] = "no"
    qk_norm: QkNorm | None = None
    clip_qkv: float | None = None  # queries, keys and values are clipped to ±this
    score_scale: float | None = None  # of q·k; None: H ** -0.5
    score_cap: float | None = None  # c: scores are c·tanh(scores / c)
    embed_scale: float = 1.0  # multiplies the looked-up embeddings
    embed_norm: bool = False  # BLOOM's norm behind the embeddings
    residual_scale: float = 1.0  # of what attention and feed-forward add
    final_norm: bool = True
    head_bias: bool = False
    logit_scale: float = 1.0  # multiplies the logits
    logit_cap: float | None = None  # c: logits are c·tanh(logits / c)
    embed_projection: int | None = None  # E: OPT's word_embed_proj_dim where it differs from D
    bos_token_id: int | None = None
    eos_token_id: int | None = None  # where config.json lists several, the first

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def kinds(self) -> tuple[Layer, ...]:
        """The layers' different kinds, in order of appearance."""
        return tuple(dict.fromkeys(self.layers))

    @property
    def table_dim(self) -> int:
        """Width of the embedding table and of what the head reads: E where given, else D."""
        return self.embed_projection or self.embed_dim

    def keep(self, layers: Sequence[int]) -> ModelConfig:
        """The same decoder with these of its layers."""
        return dataclasses.replace(self, layers=tuple(self.layers[layer] for layer in layers))
