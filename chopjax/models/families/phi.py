"""Phi-1 to 2 (transformers' PhiForCausalLM; arXiv 2309.05463): attention beside feed-forward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chopjax.models.config import Layer, ModelConfig, QkNorm
from chopjax.models.families import llama
from chopjax.models.families.fields import ACTIVATIONS, decoder, layer_norm, sizes
from chopjax.models.families.options import Options
from chopjax.models.families.rotary import rope
from chopjax.models.families.table import HEAD, Family, Row


def translate(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json → ModelConfig, with the defaults of transformers' PhiConfig."""
    options = Options(raw, neutral="embd_pdrop resid_pdrop")
    size = sizes(options, 51_200, 2048, 8192)
    turn = rope(options, size["max_positions"], size["head_dim"], fraction=0.5)
    norm = layer_norm(options, "layer_norm_eps")
    return decoder(
        options,
        layers=(Layer(rope=turn),) * options.layers("num_hidden_layers", 24),
        norm=norm,
        activation=options.choice("hidden_act", ACTIVATIONS, "gelu_new"),
        parallel="one_norm",
        qk_norm=QkNorm(norm) if options.flag("qk_layernorm", False) else None,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        head_bias=True,
        **size,
    )


_LAYER = "{p}layers.{l}."
ROWS = (
    llama.EMBEDDING,
    *(row for row in llama.ATTENTION if "o_proj" not in row.source),
    Row(_LAYER + "self_attn.dense.weight", "blocks/attention/output", "D (N H) -> N H D"),
    Row(_LAYER + "self_attn.dense.bias", "blocks/attention/output_bias", "D -> D"),
    Row(_LAYER + "self_attn.q_layernorm.weight", "blocks/attention/query_norm/scale", "H -> H"),
    Row(_LAYER + "self_attn.q_layernorm.bias", "blocks/attention/query_norm/bias", "H -> H"),
    Row(_LAYER + "self_attn.k_layernorm.weight", "blocks/attention/key_norm/scale", "H -> H"),
    Row(_LAYER + "self_attn.k_layernorm.bias", "blocks/attention/key_norm/bias", "H -> H"),
    Row(_LAYER + "input_layernorm.weight", "blocks/attention_norm/scale", "D -> D"),
    Row(_LAYER + "input_layernorm.bias", "blocks/attention_norm/bias", "D -> D"),
    Row(_LAYER + "mlp.fc1.weight", "blocks/mlp/up", "F D -> D F"),
    Row(_LAYER + "mlp.fc1.bias", "blocks/mlp/up_bias", "F -> F"),
    Row(_LAYER + "mlp.fc2.weight", "blocks/mlp/down", "D F -> F D"),
    Row(_LAYER + "mlp.fc2.bias", "blocks/mlp/down_bias", "D -> D"),
    Row("{p}final_layernorm.weight", "final_norm/scale", "D -> D"),
    Row("{p}final_layernorm.bias", "final_norm/bias", "D -> D"),
    Row(HEAD, "head/kernel", "V D -> D V"),
    Row("{h}.bias", "head/bias", "V -> V"),
)

FAMILY = Family(
    model_type="phi",
    translate=translate,
    rows=ROWS,
    prefixes=llama.PREFIXES,
    num_layers_key="num_hidden_layers",
    buffers=llama.BUFFERS,
)
