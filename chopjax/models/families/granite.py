"""Granite 3, dense (transformers' GraniteForCausalLM): Llama with four multipliers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chopjax.models.config import Layer, ModelConfig
from chopjax.models.families import llama
from chopjax.models.families.fields import ACTIVATIONS, decoder, rms, sizes
from chopjax.models.families.options import SMALL, Options
from chopjax.models.families.rotary import rope
from chopjax.models.families.table import Family


def translate(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json → ModelConfig, with the defaults of transformers' GraniteConfig."""
    options = Options(raw)
    size = sizes(options)
    turn = rope(options, size["max_positions"], size["head_dim"])
    bias = options.flag("attention_bias", False)
    return decoder(
        options,
        layers=(Layer(rope=turn),) * options.layers("num_hidden_layers", 32),
        norm=rms(options, 1e-6),
        activation=options.choice("hidden_act", ACTIVATIONS, "silu"),
        gated_mlp=True,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=options.flag("mlp_bias", False),
        score_scale=options.number("attention_multiplier", 1.0),
        embed_scale=options.number("embedding_multiplier", 1.0),
        residual_scale=options.number("residual_multiplier", 1.0),
        logit_scale=1 / options.number("logits_scaling", 1.0, above=SMALL),
        **size,
    )


FAMILY = Family(
    model_type="granite",
    translate=translate,
    rows=llama.ROWS,
    prefixes=llama.PREFIXES,
    num_layers_key="num_hidden_layers",
    buffers=llama.BUFFERS,
)
