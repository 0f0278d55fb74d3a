"""OPT (transformers' OPTForCausalLM; arXiv 2205.01068), the post-norm 350m included."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chopjax.models.config import Layer, ModelConfig, Norm
from chopjax.models.families.options import Options
from chopjax.models.families.table import HEAD, Family, Row

ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}


def translate(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json → ModelConfig, with the defaults of transformers' OPTConfig."""
    options = Options(raw, neutral="dropout activation_dropout init_std layerdrop")
    embed_dim = options.size("hidden_size", 768)
    num_heads = options.size("num_attention_heads", 12)
    table_dim = options.size("word_embed_proj_dim", embed_dim)
    bias = options.flag("enable_bias", True)
    pre_norm = options.flag("do_layer_norm_before", True)
    no_final_norm = options.flag("_remove_final_layer_norm", False)
    affine = options.flag("layer_norm_elementwise_affine", True)
    config = ModelConfig(
        family="opt",
        vocab_size=options.size("vocab_size", 50_272),
        embed_dim=embed_dim,
        layers=(Layer(),) * options.layers("num_hidden_layers", 12),
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=options.divide("hidden_size / num_attention_heads", embed_dim, num_heads),
        mlp_dim=options.size("ffn_dim", 3072),
        max_positions=options.size("max_position_embeddings", 2048),
        norm=Norm("layer", 1e-5, affine, affine),  # torch's epsilon; OPT has no key for it
        activation=options.choice("activation_function", ACTIVATIONS, "relu"),
        tie_embeddings=options.flag("tie_word_embeddings", True),
        positions="learned",
        position_offset=2,  # transformers' OPTLearnedPositionalEmbedding
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=bias,
        norm_place="before" if pre_norm else "residual",
        final_norm=pre_norm and not no_final_norm,
        embed_projection=table_dim if table_dim != embed_dim else None,
        bos_token_id=options.token("bos_token_id"),
        eos_token_id=options.token("eos_token_id"),
    )
    options.finish(config.num_layers)
    return config


_LAYER = "{p}layers.{l}."
# E, the table's width, equals D where there is no projection.
ROWS = (
    Row("{p}embed_tokens.weight", "embed/embedding", "V E -> V E"),
    Row("{p}embed_positions.weight", "embed/positions", "P D -> P D"),
    Row("{p}project_in.weight", "embed/project_in", "D E -> E D"),
    Row(_LAYER + "self_attn_layer_norm.weight", "blocks/attention_norm/scale", "D -> D"),
    Row(_LAYER + "self_attn_layer_norm.bias", "blocks/attention_norm/bias", "D -> D"),
    Row(_LAYER + "self_attn.q_proj.weight", "blocks/attention/query", "(N H) D -> D N H"),
    Row(_LAYER + "self_attn.k_proj.weight", "blocks/attention/key", "(K H) D -> D K H"),
    Row(_LAYER + "self_attn.v_proj.weight", "blocks/attention/value", "(K H) D -> D K H"),
    Row(_LAYER + "self_attn.out_proj.weight", "blocks/attention/output", "D (N H) -> N H D"),
    Row(_LAYER + "self_attn.q_proj.bias", "blocks/attention/query_bias", "(N H) -> N H"),
    Row(_LAYER + "self_attn.k_proj.bias", "blocks/attention/key_bias", "(K H) -> K H"),
    Row(_LAYER + "self_attn.v_proj.bias", "blocks/attention/value_bias", "(K H) -> K H"),
    Row(_LAYER + "self_attn.out_proj.bias", "blocks/attention/output_bias", "D -> D"),
    Row(_LAYER + "final_layer_norm.weight", "blocks/mlp_norm/scale", "D -> D"),
    Row(_LAYER + "final_layer_norm.bias", "blocks/mlp_norm/bias", "D -> D"),
    Row(_LAYER + "fc1.weight", "blocks/mlp/up", "F D -> D F"),
    Row(_LAYER + "fc1.bias", "blocks/mlp/up_bias", "F -> F"),
    Row(_LAYER + "fc2.weight", "blocks/mlp/down", "D F -> F D"),
    Row(_LAYER + "fc2.bias", "blocks/mlp/down_bias", "D -> D"),
    Row("{p}final_layer_norm.weight", "final_norm/scale", "D -> D"),
    Row("{p}final_layer_norm.bias", "final_norm/bias", "D -> D"),
    Row("{p}project_out.weight", "head/project_out", "E D -> D E"),
    Row(HEAD, "head/kernel", "V E -> E V"),
)


FAMILY = Family(
    model_type="opt",
    translate=translate,
    rows=ROWS,
    prefixes=("model.decoder.", "decoder.", ""),
    num_layers_key="num_hidden_layers",
    mlp_key="ffn_dim",
)
