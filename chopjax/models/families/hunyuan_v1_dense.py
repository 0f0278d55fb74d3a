"""Hunyuan, dense (transformers' HunYuanDenseV1ForCausalLM): QK norm behind the rotation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chopjax.models.config import Layer, ModelConfig, QkNorm
from chopjax.models.families import llama
from chopjax.models.families.fields import ACTIVATIONS, decoder, rms, sizes
from chopjax.models.families.options import Options
from chopjax.models.families.rotary import rope
from chopjax.models.families.table import Family, Row


def translate(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json → ModelConfig, with the defaults of transformers\' HunYuanDenseV1Config."""
    options = Options(raw, neutral="eod_token_id")
    size = sizes(options, 290_943)
    turn = rope(options, size["max_positions"], size["head_dim"])
    norm = rms(options, 1e-5)
    bias = options.flag("attention_bias", False)
    return decoder(
        options,
        layers=(Layer(rope=turn),) * options.layers("num_hidden_layers", 32),
        norm=norm,
        activation=options.choice("hidden_act", ACTIVATIONS, "silu"),
        gated_mlp=True,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=QkNorm(norm, after_rope=True),
        **size,
    )


_ATTENTION = "{p}layers.{l}.self_attn."
QK_NORMS = (
    Row(_ATTENTION + "query_layernorm.weight", "blocks/attention/query_norm/scale", "H -> H"),
    Row(_ATTENTION + "key_layernorm.weight", "blocks/attention/key_norm/scale", "H -> H"),
)

FAMILY = Family(
    model_type="hunyuan_v1_dense",
    translate=translate,
    rows=(*llama.ROWS, *QK_NORMS),
    prefixes=llama.PREFIXES,
    num_layers_key="num_hidden_layers",
    buffers=llama.BUFFERS,
)
