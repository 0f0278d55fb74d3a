"""Gemma 3's text models (transformers' Gemma3ForCausalLM; arXiv 2503.19786): two ropes, QK norm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chopjax.models.config import ModelConfig, QkNorm, Rope
from chopjax.models.families import gemma2, llama, qwen3
from chopjax.models.families.fields import (
    ACTIVATIONS,
    decoder,
    kinds,
    layers,
    rms,
    sizes,
)
from chopjax.models.families.options import Options
from chopjax.models.families.rotary import by_kind
from chopjax.models.families.table import Family


def translate(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json → ModelConfig, with the defaults of transformers' Gemma3TextConfig."""
    # The file may have a cap of scores: transformers applies none.
    off = {"use_bidirectional_attention": False, "attn_logit_softcapping": None}
    options = Options(raw, gemma2.NEUTRAL, off)
    size = sizes(
        options, 262_208, 2304, 9216, 8, kv_heads=4, head_dim=256, positions=131_072, tied=True
    )
    window = options.window("sliding_window", 4096)
    count = options.layers("num_hidden_layers", 26)
    period = options.size("sliding_window_pattern", 6)
    sliding = kinds(options, count, lambda i: (i + 1) % period != 0, window)
    far, near = ropes(options, size)
    norm = rms(options, 1e-6, offset=1.0)
    bias = options.flag("attention_bias", False)
    return decoder(
        options,
        layers=layers(sliding, window, far, near),
        norm=norm,
        activation=options.choice("hidden_activation", ACTIVATIONS, "gelu_pytorch_tanh"),
        norm_place="both",
        gated_mlp=True,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=QkNorm(norm),
        score_scale=options.number("query_pre_attn_scalar", 256, above=0) ** -0.5,
        embed_scale=size["embed_dim"] ** 0.5,
        logit_cap=options.cap("final_logit_softcapping", None),
        **size,
    )


def ropes(options: Options, size: Mapping[str, Any]) -> tuple[Rope, Rope]:
    """Of full layers and of those with a window."""
    far = options.number("rope_theta", 1e6, above=0)
    near = options.number("rope_local_base_freq", 1e4, above=0)
    return by_kind(options, size["max_positions"], size["head_dim"], far, near)


FAMILY = Family(
    model_type="gemma3_text",
    translate=translate,
    rows=(*gemma2.ROWS, *qwen3.QK_NORMS),
    prefixes=llama.PREFIXES,
    num_layers_key="num_hidden_layers",
    buffers=llama.BUFFERS,
    heads_divide_width=True,
)
