"""OLMoE (transformers' OlmoeForCausalLM; arXiv 2409.02060): experts, QK norm over all heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chopjax.models.config import Layer, ModelConfig, QkNorm
from chopjax.models.families import llama, mixtral, olmo2
from chopjax.models.families.fields import ACTIVATIONS, decoder, experts, rms, sizes
from chopjax.models.families.options import Options
from chopjax.models.families.rotary import rope
from chopjax.models.families.table import Family, Row


def translate(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json → ModelConfig, with the defaults of transformers' OlmoeConfig."""
    options = Options(raw, neutral=mixtral.NEUTRAL)
    size = sizes(options, 50_304, 2048, mlp=2048, heads=16, positions=4096, own_head_dim=False)
    turn = rope(options, size["max_positions"], size["head_dim"])
    norm = rms(options, 1e-5)
    bias = options.flag("attention_bias", False)
    count = options.layers("num_hidden_layers", 16)
    return decoder(
        options,
        layers=(Layer(rope=turn),) * count,
        norm=norm,
        activation=options.choice("hidden_act", ACTIVATIONS, "silu"),
        gated_mlp=True,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=QkNorm(norm, over="all_heads"),
        clip_qkv=options.cap("clip_qkv", None),
        experts=experts(options, count, 64, 8, options.flag("norm_topk_prob", False)),
        **size,
    )


_MLP = "{p}layers.{l}.mlp."
_EXPERT = _MLP + "experts.{e}."
MLP = (
    Row(_MLP + "gate.weight", "blocks/mlp/router", "X D -> D X"),
    Row(_EXPERT + "gate_proj.weight", "blocks/mlp/gate", "F D -> D F"),
    Row(_EXPERT + "up_proj.weight", "blocks/mlp/up", "F D -> D F"),
    Row(_EXPERT + "down_proj.weight", "blocks/mlp/down", "D F -> F D"),
)

FAMILY = Family(
    model_type="olmoe",
    translate=translate,
    rows=(
        llama.EMBEDDING,
        *llama.ATTENTION,
        *olmo2.QK_NORMS,
        *llama.NORMS,
        *MLP,
        *llama.ENDS,
    ),
    prefixes=llama.PREFIXES,
    num_layers_key="num_hidden_layers",
    buffers=llama.BUFFERS,
)
