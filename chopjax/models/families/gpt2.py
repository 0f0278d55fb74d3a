"""GPT-2 (transformers' GPT2LMHeadModel). Its Conv1D weights are stored [in, out]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chopjax.models.config import Layer, ModelConfig, Norm
from chopjax.models.families.options import Options
from chopjax.models.families.table import HEAD, Family, Row

ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def translate(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json → ModelConfig, with the defaults of transformers' GPT2Config."""
    options = Options(
        raw,
        neutral="attn_pdrop embd_pdrop resid_pdrop n_ctx n_special predict_special_tokens "
        "summary_activation summary_first_dropout summary_proj_to_labels summary_type "
        "summary_use_proj",
        off={
            "reorder_and_upcast_attn": False,
            # The scale depends on the layer's index, so removing layers would change the others.
            "scale_attn_by_inverse_layer_idx": False,
            "scale_attn_weights": True,
        },
    )
    embed_dim = options.size("n_embd", 768)
    num_heads = options.size("n_head", 12)
    config = ModelConfig(
        family="gpt2",
        vocab_size=options.size("vocab_size", 50_257),
        embed_dim=embed_dim,
        layers=(Layer(),) * options.layers("n_layer", 12),
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=options.divide("n_embd / n_head", embed_dim, num_heads),
        mlp_dim=options.size("n_inner", 4 * embed_dim),
        max_positions=options.size("n_positions", 1024),
        norm=Norm("layer", options.number("layer_norm_epsilon", 1e-5, above=0), bias=True),
        activation=options.choice("activation_function", ACTIVATIONS, "gelu_new"),
        tie_embeddings=options.flag("tie_word_embeddings", True),
        positions="learned",
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        bos_token_id=options.token("bos_token_id"),
        eos_token_id=options.token("eos_token_id"),
    )
    options.finish(config.num_layers)
    return config


_LAYER = "{p}h.{l}."
_QKV = tuple(f"blocks/attention/{name}" for name in ("query", "key", "value"))
ROWS = (
    Row("{p}wte.weight", "embed/embedding", "V D -> V D"),
    Row("{p}wpe.weight", "embed/positions", "P D -> P D"),
    Row(_LAYER + "ln_1.weight", "blocks/attention_norm/scale", "D -> D"),
    Row(_LAYER + "ln_1.bias", "blocks/attention_norm/bias", "D -> D"),
    Row(_LAYER + "attn.c_attn.weight", _QKV, "D ({N,K,K} H) -> D {N,K,K} H"),
    Row(_LAYER + "attn.c_attn.bias", tuple(f"{p}_bias" for p in _QKV), "({N,K,K} H) -> {N,K,K} H"),
    Row(_LAYER + "attn.c_proj.weight", "blocks/attention/output", "(N H) D -> N H D"),
    Row(_LAYER + "attn.c_proj.bias", "blocks/attention/output_bias", "D -> D"),
    Row(_LAYER + "ln_2.weight", "blocks/mlp_norm/scale", "D -> D"),
    Row(_LAYER + "ln_2.bias", "blocks/mlp_norm/bias", "D -> D"),
    Row(_LAYER + "mlp.c_fc.weight", "blocks/mlp/up", "D F -> D F"),
    Row(_LAYER + "mlp.c_fc.bias", "blocks/mlp/up_bias", "F -> F"),
    Row(_LAYER + "mlp.c_proj.weight", "blocks/mlp/down", "F D -> F D"),
    Row(_LAYER + "mlp.c_proj.bias", "blocks/mlp/down_bias", "D -> D"),
    Row("{p}ln_f.weight", "final_norm/scale", "D -> D"),
    Row("{p}ln_f.bias", "final_norm/bias", "D -> D"),
    Row(HEAD, "head/kernel", "V D -> D V"),
)

FAMILY = Family(
    model_type="gpt2",
    translate=translate,
    rows=ROWS,
    prefixes=("transformer.", ""),
    num_layers_key="n_layer",
    buffers=(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",),
    mlp_key="n_inner",
)
