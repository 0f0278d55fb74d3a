"""BLOOM (transformers' BloomForCausalLM; arXiv 2211.05100): ALiBi, a norm behind the embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chopjax.models.config import Layer, ModelConfig
from chopjax.models.families import falcon
from chopjax.models.families.fields import decoder, layer_norm
from chopjax.models.families.options import MAX_LAYERS, Options
from chopjax.models.families.table import Family, Row


def translate(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json → ModelConfig, with the defaults of transformers' BloomConfig."""
    options = Options(
        raw,
        neutral="attention_softmax_in_fp32 bias_dropout_fusion hidden_dropout "
        "masked_softmax_fusion offset_alibi skip_bias_add skip_bias_add_qkv slow_but_exact "
        "unk_token_id",
        off={"apply_residual_connection_post_layernorm": False, "n_inner": None},
    )
    embed_dim = options.size("n_embed", options.size("hidden_size", 64))
    num_heads = options.one_size("n_head", "num_attention_heads", 8)
    count = options.one_size("n_layer", "num_hidden_layers", 2, MAX_LAYERS)
    return decoder(
        options,
        layers=(Layer(),) * count,
        vocab_size=options.size("vocab_size", 250_880),
        embed_dim=embed_dim,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=options.divide("n_embed / n_head", embed_dim, num_heads),
        mlp_dim=4 * embed_dim,
        max_positions=options.size("seq_length", 2048),
        norm=layer_norm(options, "layer_norm_epsilon"),
        activation="gelu_tanh",
        tie_embeddings=options.flag("tie_word_embeddings", True),
        positions="alibi",
        embed_norm=True,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
    )


FAMILY = Family(
    model_type="bloom",
    translate=translate,
    rows=(
        *falcon.ROWS,
        Row("{p}word_embeddings_layernorm.weight", "embed/norm/scale", "D -> D"),
        Row("{p}word_embeddings_layernorm.bias", "embed/norm/bias", "D -> D"),
    ),
    prefixes=("transformer.", ""),
    num_layers_key="n_layer",
    mlp_key=None,
)
