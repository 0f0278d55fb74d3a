"""ERNIE 4.5, dense (transformers' Ernie4_5ForCausalLM): Llama whose heads turn in pairs."""

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
    """config.json → ModelConfig, with the defaults of transformers' Ernie4_5Config."""
    options = Options(raw)
    size = sizes(
        options, 103_424, 1024, 3072, 16, kv_heads=2, head_dim=128, positions=131_072, tied=True
    )
    turn = rope(options, size["max_positions"], size["head_dim"], theta=5e5, interleaved=True)
    bias = options.flag("use_bias", False)
    return decoder(
        options,
        layers=(Layer(rope=turn),) * options.layers("num_hidden_layers", 18),
        norm=rms(options, 1e-5),
        activation=options.choice("hidden_act", ACTIVATIONS, "silu"),
        gated_mlp=True,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=bias,
        **size,
    )


FAMILY = Family(
    model_type="ernie4_5",
    translate=translate,
    rows=llama.ROWS,
    prefixes=llama.PREFIXES,
    num_layers_key="num_hidden_layers",
    buffers=llama.BUFFERS,
)
