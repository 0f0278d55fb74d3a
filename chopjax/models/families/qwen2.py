"""Qwen2 and 2.5, dense (transformers' Qwen2ForCausalLM; arXiv 2407.10671): windows by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chopjax.models.config import Layer, ModelConfig, Rope
from chopjax.models.families import llama
from chopjax.models.families.fields import (
    ACTIVATIONS,
    decoder,
    kinds,
    layers,
    rms,
    sizes,
)
from chopjax.models.families.options import Options, shown
from chopjax.models.families.rotary import rope
from chopjax.models.families.table import Family


def translate(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json → ModelConfig, with the defaults of transformers' Qwen2Config."""
    options = Options(raw, off={"use_mrope": False})
    size = sizes(options, vocab=151_936, mlp=22_016, kv_heads=32, positions=32_768)
    turn = rope(options, size["max_positions"], size["head_dim"])
    return decoder(
        options,
        layers=windowed(options, turn),
        norm=rms(options, 1e-6),
        activation=options.choice("hidden_act", ACTIVATIONS, "silu"),
        gated_mlp=True,
        qkv_bias=True,
        **size,
    )


def windowed(options: Options, turn: Rope) -> tuple[Layer, ...]:
    """Qwen's layers: where use_sliding_window is true those from max_window_layers on have a
    window, unless layer_types says which."""
    count = options.layers("num_hidden_layers", 32)
    window = options.window("sliding_window", 4096)
    if not options.flag("use_sliding_window", False):
        window = None
    first = options.nullable("max_window_layers", 28)
    if isinstance(first, bool) or not isinstance(first, int):
        options.problems.append(f"max_window_layers is {shown(first)}; a whole number is needed")
        first = count
    sliding = kinds(options, count, lambda i: window is not None and i >= first, window)
    return layers(sliding, window, turn, turn)


FAMILY = Family(
    model_type="qwen2",
    translate=translate,
    rows=llama.ROWS,
    prefixes=llama.PREFIXES,
    num_layers_key="num_hidden_layers",
    buffers=llama.BUFFERS,
)
