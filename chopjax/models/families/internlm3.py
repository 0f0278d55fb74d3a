"""InternLM3 (transformers' InternLM3Config; arXiv 2403.17297): Llama with biases of its own."""

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
    """config.json → ModelConfig, with the defaults of transformers' InternLM3Config."""
    options = Options(raw)
    size = sizes(options, 128_512, mlp=10_240, kv_heads=2, head_dim=128, positions=32_768)
    turn = rope(options, size["max_positions"], size["head_dim"])
    # transformers has two names for each, and one value for both.
    bias = options.flag("qkv_bias", options.flag("attention_bias", False))
    if options.flag("bias", options.flag("mlp_bias", False)) != bias:
        options.problems.append("bias is not qkv_bias, which transformers does not support")
    return decoder(
        options,
        layers=(Layer(rope=turn),) * options.layers("num_hidden_layers", 48),
        norm=rms(options, 1e-5),
        activation=options.choice("hidden_act", ACTIVATIONS, "silu"),
        gated_mlp=True,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=bias,
        **size,
    )


FAMILY = Family(
    model_type="internlm3",
    translate=translate,
    rows=llama.ROWS,
    prefixes=llama.PREFIXES,
    num_layers_key="num_hidden_layers",
    buffers=llama.BUFFERS,
    heads_divide_width=True,
)
