"""Arcee's AFM (transformers' ArceeForCausalLM): Llama with a feed-forward of squared ReLUs."""

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
    """config.json → ModelConfig, with the defaults of transformers' ArceeConfig."""
    options = Options(raw)
    size = sizes(options, width=2560, mlp=18_432, positions=4096)
    turn = rope(options, size["max_positions"], size["head_dim"])
    bias = options.flag("attention_bias", False)
    return decoder(
        options,
        layers=(Layer(rope=turn),) * options.layers("num_hidden_layers", 32),
        norm=rms(options, 1e-5),
        activation=options.choice("hidden_act", ACTIVATIONS, "relu2"),
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=options.flag("mlp_bias", False),
        **size,
    )


FAMILY = Family(
    model_type="arcee",
    translate=translate,
    rows=llama.ROWS,
    prefixes=llama.PREFIXES,
    num_layers_key="num_hidden_layers",
    buffers=llama.BUFFERS,
    heads_divide_width=True,
)
