"""Helium (transformers' HeliumForCausalLM): Llama whose heads turn in pairs."""

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
    """config.json → ModelConfig, with the defaults of transformers' HeliumConfig."""
    options = Options(raw)
    size = sizes(options, 48_000, 2560, 7040, 20, kv_heads=20, head_dim=128, positions=4096)
    turn = rope(options, size["max_positions"], size["head_dim"], theta=1e5, interleaved=True)
    if size["num_heads"] * size["head_dim"] != size["embed_dim"]:
        options.problems.append("head_dim: only hidden_size / num_attention_heads is supported")
    return decoder(
        options,
        layers=(Layer(rope=turn),) * options.layers("num_hidden_layers", 24),
        norm=rms(options, 1e-8),
        activation=options.choice("hidden_act", ACTIVATIONS, "silu"),
        gated_mlp=True,
        qkv_bias=options.flag("attention_bias", False),
        mlp_bias=options.flag("mlp_bias", False),
        **size,
    )


FAMILY = Family(
    model_type="helium",
    translate=translate,
    rows=llama.ROWS,
    prefixes=llama.PREFIXES,
    num_layers_key="num_hidden_layers",
    buffers=llama.BUFFERS,
)
