"""OLMo 2 (transformers' Olmo2ForCausalLM; arXiv 2501.00656): norms after, QK norm over heads."""

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
    """config.json → ModelConfig, with the defaults of transformers' Olmo2Config."""
    options = Options(raw)
    size = sizes(options, 50_304)
    turn = rope(options, size["max_positions"], size["head_dim"])
    layers = (Layer(rope=turn),) * options.layers("num_hidden_layers", 32)
    return with_layers(options, size, layers)


def with_layers(
    options: Options, size: Mapping[str, Any], layers: tuple[Layer, ...]
) -> ModelConfig:
    """What OLMo 2 and 3 share."""
    norm = rms(options, 1e-5)
    bias = options.flag("attention_bias", False)
    return decoder(
        options,
        layers=layers,
        norm=norm,
        activation=options.choice("hidden_act", ACTIVATIONS, "silu"),
        norm_place="after",
        gated_mlp=True,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=QkNorm(norm, over="all_heads"),
        **size,
    )


_LAYER = "{p}layers.{l}."
QK_NORMS = (
    Row(_LAYER + "self_attn.q_norm.weight", "blocks/attention/query_norm/scale", "(N H) -> N H"),
    Row(_LAYER + "self_attn.k_norm.weight", "blocks/attention/key_norm/scale", "(K H) -> K H"),
)
NORMS_AFTER = (
    Row(_LAYER + "post_attention_layernorm.weight", "blocks/attention_output_norm/scale", "D -> D"),
    Row(_LAYER + "post_feedforward_layernorm.weight", "blocks/mlp_output_norm/scale", "D -> D"),
)
ROWS = (
    llama.EMBEDDING,
    *llama.ATTENTION,
    *QK_NORMS,
    *NORMS_AFTER,
    *llama.MLP,
    *llama.ENDS,
)

FAMILY = Family(
    model_type="olmo2",
    translate=translate,
    rows=ROWS,
    prefixes=llama.PREFIXES,
    num_layers_key="num_hidden_layers",
    buffers=llama.BUFFERS,
)
