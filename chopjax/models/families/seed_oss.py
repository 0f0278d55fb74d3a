"""Seed-OSS (transformers' SeedOssForCausalLM): Llama with biases of its own."""

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
    """config.json → ModelConfig, with the defaults of transformers' SeedOssConfig."""
    options = Options(raw, neutral="residual_dropout")
    size = sizes(
        options, 155_136, mlp=27_648, heads=80, kv_heads=8, head_dim=128, positions=524_288
    )
    turn = rope(options, size["max_positions"], size["head_dim"])
    return decoder(
        options,
        layers=(Layer(rope=turn),) * options.layers("num_hidden_layers", 64),
        norm=rms(options, 1e-6),
        activation=options.choice("hidden_act", ACTIVATIONS, "silu"),
        gated_mlp=True,
        qkv_bias=options.flag("attention_bias", True),
        output_bias=options.flag("attention_out_bias", False),
        mlp_bias=options.flag("mlp_bias", False),
        **size,
    )


FAMILY = Family(
    model_type="seed_oss",
    translate=translate,
    rows=llama.ROWS,
    prefixes=llama.PREFIXES,
    num_layers_key="num_hidden_layers",
    buffers=llama.BUFFERS,
)
