"""Qwen3, dense (transformers' Qwen3ForCausalLM; arXiv 2505.09388): QK norm, windows by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chopjax.models.config import ModelConfig, QkNorm
from chopjax.models.families import llama, qwen2
from chopjax.models.families.fields import ACTIVATIONS, decoder, rms, sizes
from chopjax.models.families.options import Options
from chopjax.models.families.rotary import rope
from chopjax.models.families.table import Family, Row


def translate(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json → ModelConfig, with the defaults of transformers' Qwen3Config."""
    options = Options(raw)
    size = sizes(options, 151_936, mlp=22_016, kv_heads=32, head_dim=128, positions=32_768)
    turn = rope(options, size["max_positions"], size["head_dim"])
    norm = rms(options, 1e-6)
    bias = options.flag("attention_bias", False)
    return decoder(
        options,
        layers=qwen2.windowed(options, turn),
        norm=norm,
        activation=options.choice("hidden_act", ACTIVATIONS, "silu"),
        gated_mlp=True,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=QkNorm(norm),
        **size,
    )


_ATTENTION = "{p}layers.{l}.self_attn."
QK_NORMS = (
    Row(_ATTENTION + "q_norm.weight", "blocks/attention/query_norm/scale", "H -> H"),
    Row(_ATTENTION + "k_norm.weight", "blocks/attention/key_norm/scale", "H -> H"),
)

FAMILY = Family(
    model_type="qwen3",
    translate=translate,
    rows=(*llama.ROWS, *QK_NORMS),
    prefixes=llama.PREFIXES,
    num_layers_key="num_hidden_layers",
    buffers=llama.BUFFERS,
)
