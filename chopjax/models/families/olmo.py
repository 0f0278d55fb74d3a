"""OLMo (transformers' OlmoForCausalLM; arXiv 2402.00838): layer norms without parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chopjax.models.config import Layer, ModelConfig, Norm
from chopjax.models.families import llama
from chopjax.models.families.fields import ACTIVATIONS, decoder, sizes
from chopjax.models.families.options import Options
from chopjax.models.families.rotary import rope
from chopjax.models.families.table import Family


def translate(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json → ModelConfig, with the defaults of transformers' OlmoConfig."""
    options = Options(raw)
    size = sizes(options, 50_304)
    turn = rope(options, size["max_positions"], size["head_dim"])
    bias = options.flag("attention_bias", False)
    return decoder(
        options,
        layers=(Layer(rope=turn),) * options.layers("num_hidden_layers", 32),
        norm=Norm("layer", 1e-5, scale=False),
        activation=options.choice("hidden_act", ACTIVATIONS, "silu"),
        gated_mlp=True,
        qkv_bias=bias,
        output_bias=bias,
        clip_qkv=options.cap("clip_qkv", None),
        **size,
    )


FAMILY = Family(
    model_type="olmo",
    translate=translate,
    rows=llama.ROWS,
    prefixes=llama.PREFIXES,
    num_layers_key="num_hidden_layers",
    buffers=llama.BUFFERS,
)
