"""Llama (transformers' LlamaForCausalLM; arXiv 2302.13971, 2307.09288, 2407.21783)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chopjax.models.config import Layer, ModelConfig
from chopjax.models.families.fields import ACTIVATIONS, decoder, rms, sizes
from chopjax.models.families.options import Options
from chopjax.models.families.rotary import rope
from chopjax.models.families.table import HEAD, Family, Row


def translate(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json → ModelConfig, with the defaults of transformers' LlamaConfig."""
    options = Options(raw, off={"activation": "swiglu"})  # beside hidden_act, in Falcon3's files
    size = sizes(options)
    turn = rope(options, size["max_positions"], size["head_dim"])
    bias = options.flag("attention_bias", False)
    return decoder(
        options,
        layers=(Layer(rope=turn),) * options.layers("num_hidden_layers", 32),
        norm=rms(options, 1e-6),
        activation=options.choice("hidden_act", ACTIVATIONS, "silu"),
        gated_mlp=True,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=options.flag("mlp_bias", False),
        **size,
    )


_LAYER = "{p}layers.{l}."
EMBEDDING = Row("{p}embed_tokens.weight", "embed/embedding", "V D -> V D")
ATTENTION = (
    Row(_LAYER + "self_attn.q_proj.weight", "blocks/attention/query", "(N H) D -> D N H"),
    Row(_LAYER + "self_attn.k_proj.weight", "blocks/attention/key", "(K H) D -> D K H"),
    Row(_LAYER + "self_attn.v_proj.weight", "blocks/attention/value", "(K H) D -> D K H"),
    Row(_LAYER + "self_attn.o_proj.weight", "blocks/attention/output", "D (N H) -> N H D"),
    Row(_LAYER + "self_attn.q_proj.bias", "blocks/attention/query_bias", "(N H) -> N H"),
    Row(_LAYER + "self_attn.k_proj.bias", "blocks/attention/key_bias", "(K H) -> K H"),
    Row(_LAYER + "self_attn.v_proj.bias", "blocks/attention/value_bias", "(K H) -> K H"),
    Row(_LAYER + "self_attn.o_proj.bias", "blocks/attention/output_bias", "D -> D"),
)
NORMS = (
    Row(_LAYER + "input_layernorm.weight", "blocks/attention_norm/scale", "D -> D"),
    Row(_LAYER + "post_attention_layernorm.weight", "blocks/mlp_norm/scale", "D -> D"),
)
MLP = (
    Row(_LAYER + "mlp.gate_proj.weight", "blocks/mlp/gate", "F D -> D F"),
    Row(_LAYER + "mlp.up_proj.weight", "blocks/mlp/up", "F D -> D F"),
    Row(_LAYER + "mlp.down_proj.weight", "blocks/mlp/down", "D F -> F D"),
    Row(_LAYER + "mlp.gate_proj.bias", "blocks/mlp/gate_bias", "F -> F"),
    Row(_LAYER + "mlp.up_proj.bias", "blocks/mlp/up_bias", "F -> F"),
    Row(_LAYER + "mlp.down_proj.bias", "blocks/mlp/down_bias", "D -> D"),
)
ENDS = (
    Row("{p}norm.weight", "final_norm/scale", "D -> D"),
    Row(HEAD, "head/kernel", "V D -> D V"),
)
ROWS = (EMBEDDING, *ATTENTION, *NORMS, *MLP, *ENDS)
PREFIXES = ("model.", "")
BUFFERS = (r"(model\.)?(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",)

FAMILY = Family(
    model_type="llama",
    translate=translate,
    rows=ROWS,
    prefixes=PREFIXES,
    num_layers_key="num_hidden_layers",
    buffers=BUFFERS,
    heads_divide_width=True,
)
