"""Gemma 2 (transformers' Gemma2ForCausalLM; arXiv 2408.00118): capped scores, windows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chopjax.models.config import ModelConfig
from chopjax.models.families import llama
from chopjax.models.families.fields import (
    ACTIVATIONS,
    decoder,
    kinds,
    layers,
    rms,
    sizes,
)
from chopjax.models.families.options import Options
from chopjax.models.families.rotary import rope
from chopjax.models.families.table import Family, Row

NEUTRAL = "hidden_act cache_implementation sliding_window_size _sliding_window_pattern"


def translate(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json → ModelConfig, with the defaults of transformers' Gemma2Config."""
    options = Options(raw, NEUTRAL, off={"use_bidirectional_attention": False})
    size = sizes(
        options, 256_000, 2304, 9216, 8, kv_heads=4, head_dim=256, positions=8192, tied=True
    )
    turn = rope(options, size["max_positions"], size["head_dim"])
    window = options.window("sliding_window", 4096)
    count = options.layers("num_hidden_layers", 26)
    sliding = kinds(options, count, lambda i: i % 2 == 0, window)
    bias = options.flag("attention_bias", False)
    return decoder(
        options,
        layers=layers(sliding, window, turn, turn),
        norm=rms(options, 1e-6, offset=1.0),
        activation=options.choice("hidden_activation", ACTIVATIONS, "gelu_pytorch_tanh"),
        norm_place="both",
        gated_mlp=True,
        qkv_bias=bias,
        output_bias=bias,
        score_scale=options.number("query_pre_attn_scalar", 256, above=0) ** -0.5,
        score_cap=options.cap("attn_logit_softcapping", 50.0),
        embed_scale=size["embed_dim"] ** 0.5,
        logit_cap=options.cap("final_logit_softcapping", 30.0),
        **size,
    )


_LAYER = "{p}layers.{l}."
NORMS = (
    Row(_LAYER + "input_layernorm.weight", "blocks/attention_norm/scale", "D -> D"),
    Row(_LAYER + "post_attention_layernorm.weight", "blocks/attention_output_norm/scale", "D -> D"),
    Row(_LAYER + "pre_feedforward_layernorm.weight", "blocks/mlp_norm/scale", "D -> D"),
    Row(_LAYER + "post_feedforward_layernorm.weight", "blocks/mlp_output_norm/scale", "D -> D"),
)
ROWS = (llama.EMBEDDING, *llama.ATTENTION, *NORMS, *llama.MLP, *llama.ENDS)

FAMILY = Family(
    model_type="gemma2",
    translate=translate,
    rows=ROWS,
    prefixes=llama.PREFIXES,
    num_layers_key="num_hidden_layers",
    buffers=llama.BUFFERS,
    heads_divide_width=True,
)
