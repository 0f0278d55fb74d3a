"""GLM-4-9B (transformers' GlmForCausalLM; arXiv 2406.12793): half of a head turns, in pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chopjax.models.config import Layer, ModelConfig
from chopjax.models.families import llama, phi3
from chopjax.models.families.fields import ACTIVATIONS, decoder, rms, sizes
from chopjax.models.families.options import Options
from chopjax.models.families.rotary import rope
from chopjax.models.families.table import Family


def translate(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json → ModelConfig, with the defaults of transformers' GlmConfig."""
    return with_norms(raw, "before")


def with_norms(raw: Mapping[str, Any], norm_place: str) -> ModelConfig:
    """What GLM-4-9B and GLM-4-0414 share."""
    options = Options(raw)
    size = sizes(options, 151_552, mlp=13_696, kv_heads=2, head_dim=128, positions=131_072)
    turn = rope(options, size["max_positions"], size["head_dim"], fraction=0.5, interleaved=True)
    return decoder(
        options,
        layers=(Layer(rope=turn),) * options.layers("num_hidden_layers", 40),
        norm=rms(options, 1.5625e-7),
        activation=options.choice("hidden_act", ACTIVATIONS, "silu"),
        norm_place=norm_place,
        gated_mlp=True,
        qkv_bias=options.flag("attention_bias", True),
        **size,
    )


MLP = (phi3.GATE_UP, *(row for row in llama.MLP if "down_proj" in row.source))
ROWS = (llama.EMBEDDING, *llama.ATTENTION, *llama.NORMS, *MLP, *llama.ENDS)

FAMILY = Family(
    model_type="glm",
    translate=translate,
    rows=ROWS,
    prefixes=llama.PREFIXES,
    num_layers_key="num_hidden_layers",
    buffers=llama.BUFFERS,
)
