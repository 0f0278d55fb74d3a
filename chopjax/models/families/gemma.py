"""Gemma (transformers' GemmaForCausalLM; arXiv 2403.08295): norms of 1 + w, scaled embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chopjax.models.config import Layer, ModelConfig
from chopjax.models.families import llama
from chopjax.models.families.fields import ACTIVATIONS, decoder, rms, sizes
from chopjax.models.families.options import Options
from chopjax.models.families.rotary import rope
from chopjax.models.families.table import Family


def translate(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json → ModelConfig, with the defaults of transformers' GemmaConfig."""
    # Of the two keys of an activation transformers reads hidden_act, and takes "gelu" for tanh's.
    options = Options(raw, neutral="hidden_activation", off={"use_bidirectional_attention": False})
    size = sizes(
        options, 256_000, 3072, 24_576, 16, kv_heads=16, head_dim=256, positions=8192, tied=True
    )
    turn = rope(options, size["max_positions"], size["head_dim"])
    bias = options.flag("attention_bias", False)
    activations = ACTIVATIONS | {"gelu": "gelu_tanh"}
    return decoder(
        options,
        layers=(Layer(rope=turn),) * options.layers("num_hidden_layers", 28),
        norm=rms(options, 1e-6, offset=1.0),
        activation=options.choice("hidden_act", activations, "gelu_pytorch_tanh"),
        gated_mlp=True,
        qkv_bias=bias,
        output_bias=bias,
        embed_scale=size["embed_dim"] ** 0.5,
        **size,
    )


FAMILY = Family(
    model_type="gemma",
    translate=translate,
    rows=llama.ROWS,
    prefixes=llama.PREFIXES,
    num_layers_key="num_hidden_layers",
    buffers=llama.BUFFERS,
)
