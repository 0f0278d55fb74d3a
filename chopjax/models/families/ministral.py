"""Ministral (transformers' MinistralForCausalLM): Mistral with windows by layer."""

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
from chopjax.models.families.table import Family


def translate(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json → ModelConfig, with the defaults of transformers' MinistralConfig."""
    options = Options(raw)
    size = sizes(options, mlp=14_336, kv_heads=8, positions=131_072)
    turn = rope(options, size["max_positions"], size["head_dim"])
    window = options.window("sliding_window", 4096)
    count = options.layers("num_hidden_layers", 32)
    sliding = kinds(options, count, lambda _: window is not None, window)
    return decoder(
        options,
        layers=layers(sliding, window, turn, turn),
        norm=rms(options, 1e-6),
        activation=options.choice("hidden_act", ACTIVATIONS, "silu"),
        gated_mlp=True,
        **size,
    )


FAMILY = Family(
    model_type="ministral",
    translate=translate,
    rows=llama.ROWS,
    prefixes=llama.PREFIXES,
    num_layers_key="num_hidden_layers",
    buffers=llama.BUFFERS,
)
