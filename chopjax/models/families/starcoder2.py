"""StarCoder2 (transformers' Starcoder2ForCausalLM; arXiv 2402.19173)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chopjax.models.config import Layer, ModelConfig
from chopjax.models.families import llama, stablelm
from chopjax.models.families.fields import ACTIVATIONS, decoder, layer_norm, sizes
from chopjax.models.families.options import Options
from chopjax.models.families.rotary import rope
from chopjax.models.families.table import Family, Row


def translate(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json → ModelConfig, with the defaults of transformers' Starcoder2Config."""
    options = Options(
        raw,
        neutral="activation_function attention_softmax_in_fp32 embedding_dropout "
        "layer_norm_epsilon residual_dropout scale_attn_weights scale_attention_softmax_in_fp32",
        off={"mlp_type": "default", "norm_type": "layer_norm"},
    )
    size = sizes(options, 49_152, 3072, 12_288, 24, kv_heads=2, positions=4096, tied=True)
    turn = rope(options, size["max_positions"], size["head_dim"])
    window = options.window("sliding_window", None)
    bias = options.flag("use_bias", True)
    return decoder(
        options,
        layers=(Layer(window, turn),) * options.layers("num_hidden_layers", 30),
        norm=layer_norm(options, "norm_epsilon"),
        activation=options.choice("hidden_act", ACTIVATIONS, "gelu_pytorch_tanh"),
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=bias,
        **size,
    )


_LAYER = "{p}layers.{l}."
ROWS = (
    llama.EMBEDDING,
    *llama.ATTENTION,
    *llama.NORMS,
    *stablelm.BIASES,
    Row(_LAYER + "mlp.c_fc.weight", "blocks/mlp/up", "F D -> D F"),
    Row(_LAYER + "mlp.c_fc.bias", "blocks/mlp/up_bias", "F -> F"),
    Row(_LAYER + "mlp.c_proj.weight", "blocks/mlp/down", "D F -> F D"),
    Row(_LAYER + "mlp.c_proj.bias", "blocks/mlp/down_bias", "D -> D"),
    *llama.ENDS,
)

FAMILY = Family(
    model_type="starcoder2",
    translate=translate,
    rows=ROWS,
    prefixes=llama.PREFIXES,
    num_layers_key="num_hidden_layers",
    buffers=llama.BUFFERS,
)
