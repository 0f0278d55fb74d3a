"""Command R (transformers' CohereForCausalLM): attention beside feed-forward, scaled logits.

With use_qk_norm and logit_scale 1 it is Just CHOP's own PaLM-like decoder (arXiv 2305.14864,
section 3), whose norms of queries and keys are layer norms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chopjax.models.config import Layer, ModelConfig, QkNorm
from chopjax.models.families import llama
from chopjax.models.families.fields import ACTIVATIONS, decoder, layer_norm, sizes
from chopjax.models.families.options import Options
from chopjax.models.families.rotary import rope
from chopjax.models.families.table import Family, Row


def translate(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json → ModelConfig, with the defaults of transformers' CohereConfig."""
    options = Options(raw)
    size = sizes(options, 256_000, 8192, 22_528, 64, positions=8192, tied=True)
    positions, head_dim = size["max_positions"], size["head_dim"]
    turn = rope(options, positions, head_dim, theta=5e5, interleaved=True)
    layers = (Layer(rope=turn),) * options.layers("num_hidden_layers", 40)
    return with_layers(options, size, layers, options.flag("use_qk_norm", False))


def with_layers(
    options: Options, size: Mapping[str, Any], layers: tuple[Layer, ...], qk_norm: bool
) -> ModelConfig:
    """What Command R and R7B share."""
    norm = layer_norm(options, "layer_norm_eps", bias=False)
    bias = options.flag("attention_bias", False)
    return decoder(
        options,
        layers=layers,
        norm=norm,
        activation=options.choice("hidden_act", ACTIVATIONS, "silu"),
        parallel="one_norm",
        gated_mlp=True,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=QkNorm(norm, over="each_head") if qk_norm else None,
        logit_scale=options.number("logit_scale", 0.0625),
        **size,
    )


_LAYER = "{p}layers.{l}."
ROWS = (
    *(row for row in llama.ROWS if "post_attention_layernorm" not in row.source),
    Row(_LAYER + "self_attn.q_norm.weight", "blocks/attention/query_norm/scale", "N H -> N H"),
    Row(_LAYER + "self_attn.k_norm.weight", "blocks/attention/key_norm/scale", "K H -> K H"),
)

FAMILY = Family(
    model_type="cohere",
    translate=translate,
    rows=ROWS,
    prefixes=llama.PREFIXES,
    num_layers_key="num_hidden_layers",
    buffers=llama.BUFFERS,
)
