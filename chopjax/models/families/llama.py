"""Llama (transformers' LlamaForCausalLM; arXiv 2302.13971, 2307.09288, 2407.21783)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chopjax.models.config import Layer, ModelConfig, Norm
from chopjax.models.families.options import Options, rope
from chopjax.models.families.table import HEAD, Family, Row

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


def translate(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json → ModelConfig. Missing keys take the defaults of transformers' LlamaConfig."""
    options = Options(raw)
    embed_dim = options.size("hidden_size", 4096)
    num_heads = options.size("num_attention_heads", 32)
    num_kv_heads = options.size("num_key_value_heads", num_heads)
    options.divide("num_attention_heads / num_key_value_heads", num_heads, num_kv_heads)
    if options.get("head_dim") is None:
        head_dim = options.divide("hidden_size / num_attention_heads", embed_dim, num_heads)
    else:
        head_dim = options.size("head_dim")
    options.divide("head_dim / 2 (RoPE turns pairs)", head_dim, 2)
    max_positions = options.size("max_position_embeddings", 2048)
    layer = Layer(rope=rope(options, max_positions))
    bias = options.flag("attention_bias", False)
    config = ModelConfig(
        family="llama",
        vocab_size=options.size("vocab_size", 32_000),
        embed_dim=embed_dim,
        layers=(layer,) * options.layers("num_hidden_layers", 32),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        mlp_dim=options.size("intermediate_size", 11_008),
        max_positions=max_positions,
        norm=Norm("rms", options.number("rms_norm_eps", 1e-6, above=0)),
        activation=options.choice("hidden_act", ACTIVATIONS, "silu"),
        tie_embeddings=options.flag("tie_word_embeddings", False),
        gated_mlp=True,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=options.flag("mlp_bias", False),
        bos_token_id=options.token("bos_token_id"),
        eos_token_id=options.token("eos_token_id"),
    )
    options.finish(config.num_layers)
    return config


_LAYER = "{p}layers.{l}."
ROWS = (
    Row("{p}embed_tokens.weight", "embed/embedding", "V D -> V D"),
    Row(_LAYER + "input_layernorm.weight", "blocks/attention_norm/scale", "D -> D"),
    Row(_LAYER + "self_attn.q_proj.weight", "blocks/attention/query", "(N H) D -> D N H"),
    Row(_LAYER + "self_attn.k_proj.weight", "blocks/attention/key", "(K H) D -> D K H"),
    Row(_LAYER + "self_attn.v_proj.weight", "blocks/attention/value", "(K H) D -> D K H"),
    Row(_LAYER + "self_attn.o_proj.weight", "blocks/attention/output", "D (N H) -> N H D"),
    Row(_LAYER + "self_attn.q_proj.bias", "blocks/attention/query_bias", "(N H) -> N H"),
    Row(_LAYER + "self_attn.k_proj.bias", "blocks/attention/key_bias", "(K H) -> K H"),
    Row(_LAYER + "self_attn.v_proj.bias", "blocks/attention/value_bias", "(K H) -> K H"),
    Row(_LAYER + "self_attn.o_proj.bias", "blocks/attention/output_bias", "D -> D"),
    Row(_LAYER + "post_attention_layernorm.weight", "blocks/mlp_norm/scale", "D -> D"),
    Row(_LAYER + "mlp.gate_proj.weight", "blocks/mlp/gate", "F D -> D F"),
    Row(_LAYER + "mlp.up_proj.weight", "blocks/mlp/up", "F D -> D F"),
    Row(_LAYER + "mlp.down_proj.weight", "blocks/mlp/down", "D F -> F D"),
    Row(_LAYER + "mlp.gate_proj.bias", "blocks/mlp/gate_bias", "F -> F"),
    Row(_LAYER + "mlp.up_proj.bias", "blocks/mlp/up_bias", "F -> F"),
    Row(_LAYER + "mlp.down_proj.bias", "blocks/mlp/down_bias", "D -> D"),
    Row("{p}norm.weight", "final_norm/scale", "D -> D"),
    Row(HEAD, "head/kernel", "V D -> D V"),
)

FAMILY = Family(
    model_type="llama",
    translate=translate,
    rows=ROWS,
    prefixes=("model.", ""),
    num_layers_key="num_hidden_layers",
    buffers=(r"(model\.)?(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",),
)
