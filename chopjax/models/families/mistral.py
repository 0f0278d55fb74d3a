"""Mistral (transformers' MistralForCausalLM; arXiv 2310.06825): one window in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chopjax.models.config import Layer, ModelConfig
from chopjax.models.families import llama
from chopjax.models.families.fields import ACTIVATIONS, FULL, SLIDING, decoder, rms, sizes
from chopjax.models.families.options import Options
from chopjax.models.families.rotary import rope
from chopjax.models.families.table import Family


def translate(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json → ModelConfig, with the defaults of transformers' MistralConfig."""
    options = Options(raw)
    size = sizes(options, mlp=14_336, kv_heads=8, positions=131_072)
    turn = rope(options, size["max_positions"], size["head_dim"])
    window = options.window("sliding_window", 4096)
    count = options.layers("num_hidden_layers", 32)
    # transformers does not read the list: one that says otherwise is of another model.
    kind = FULL if window is None else SLIDING
    if options.get("layer_types", [kind] * count) != [kind] * count:
        options.problems.append(f"layer_types: every layer is of {kind}, as sliding_window says")
    return decoder(
        options,
        layers=(Layer(window, turn),) * count,
        norm=rms(options, 1e-6),
        activation=options.choice("hidden_act", ACTIVATIONS, "silu"),
        gated_mlp=True,
        **size,
    )


FAMILY = Family(
    model_type="mistral",
    translate=translate,
    rows=llama.ROWS,
    prefixes=llama.PREFIXES,
    num_layers_key="num_hidden_layers",
    buffers=llama.BUFFERS,
)
