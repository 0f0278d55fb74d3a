"""EXAONE 4 (transformers' Exaone4ForCausalLM; arXiv 2507.11407): full layers without RoPE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chopjax.models.config import ModelConfig, QkNorm
from chopjax.models.families import llama, olmo2, qwen3
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
    """config.json → ModelConfig, with the defaults of transformers' Exaone4Config."""
    options = Options(raw)
    size = sizes(options, 102_400, mlp=16_384, kv_heads=32)
    turn = rope(options, size["max_positions"], size["head_dim"])
    window = options.window("sliding_window", 4096)
    count = options.layers("num_hidden_layers", 32)
    if options.get("layer_types") is not None:
        options.seen.add("sliding_window_pattern")  # inert beside the list
        period = 4
    else:  # a pattern of letters, or none, makes transformers fail
        period = options.size("sliding_window_pattern", 4)
        if window is None:
            options.problems.append("sliding_window is null and layer_types missing")
    sliding = kinds(options, count, lambda i: window is not None and (i + 1) % period != 0, window)
    norm = rms(options, 1e-5)
    return decoder(
        options,
        layers=layers(sliding, window, turn if window is None else None, turn),
        norm=norm,
        activation=options.choice("hidden_act", ACTIVATIONS, "silu"),
        norm_place="after",
        gated_mlp=True,
        qk_norm=QkNorm(norm),
        **size,
    )


ROWS = (
    llama.EMBEDDING,
    *llama.ATTENTION,
    *qwen3.QK_NORMS,
    *olmo2.NORMS_AFTER,
    *llama.MLP,
    *llama.ENDS,
)

FAMILY = Family(
    model_type="exaone4",
    translate=translate,
    rows=ROWS,
    prefixes=llama.PREFIXES,
    num_layers_key="num_hidden_layers",
    buffers=llama.BUFFERS,
)
