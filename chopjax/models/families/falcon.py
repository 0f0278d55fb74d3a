"""Falcon (transformers' FalconForCausalLM; arXiv 2311.16867), those with RoPE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chopjax.models.config import Layer, ModelConfig
from chopjax.models.families.fields import ACTIVATIONS, decoder, layer_norm
from chopjax.models.families.options import Options
from chopjax.models.families.rotary import rope
from chopjax.models.families.table import HEAD, Family, Row


def translate(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json → ModelConfig, with the defaults of transformers' FalconConfig."""
    options = Options(
        raw,
        neutral="hidden_dropout apply_residual_connection_post_layernorm ff_factor",
        # transformers rounds ALiBi's slopes and products to bfloat16.
        off={"alibi": False},
    )
    embed_dim = options.size("n_embed", options.size("hidden_size", 4544))
    num_heads = options.size("num_attention_heads", 71)
    new = options.flag("new_decoder_architecture", False)
    num_kv_heads = options.size("num_kv_heads", num_heads)
    if not new:
        num_kv_heads = 1 if options.flag("multi_query", True) else num_heads
    options.seen.add("multi_query")
    options.divide("num_attention_heads / num_kv_heads", num_heads, num_kv_heads)
    head_dim = options.divide("hidden_size / num_attention_heads", embed_dim, num_heads)
    positions = options.size("max_position_embeddings", 2048)
    bias = options.flag("bias", False)
    return decoder(
        options,
        layers=(Layer(rope=rope(options, positions, head_dim)),)
        * options.layers("num_hidden_layers", 32),
        vocab_size=options.size("vocab_size", 65_024),
        embed_dim=embed_dim,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        mlp_dim=options.size("ffn_hidden_size", 4 * embed_dim),
        max_positions=positions,
        norm=layer_norm(options, "layer_norm_epsilon"),
        activation=options.choice("activation", ACTIVATIONS, "gelu"),
        tie_embeddings=options.flag("tie_word_embeddings", True),
        parallel=_parallel(options, new),
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=bias,
    )


def _parallel(options: Options, new: bool) -> str:
    """Which norms attention and feed-forward have beside each other."""
    beside = options.flag("parallel_attn", True)
    norms = options.size("num_ln_in_parallel_attn", 2 if new else 1)
    if (new and not beside) or (not new and norms != 1):
        options.problems.append(
            "new_decoder_architecture, parallel_attn and num_ln_in_parallel_attn do not go "
            "together: transformers has no such block"
        )
    return "two_norms" if norms == 2 else "one_norm" if beside else "no"


def _has_two(config: ModelConfig) -> bool:
    return config.parallel == "two_norms"


def _has_not_two(config: ModelConfig) -> bool:
    return config.parallel != "two_norms"


_LAYER = "{p}h.{l}."
_QKV = tuple(f"blocks/attention/{name}" for name in ("query", "key", "value"))
_FIRST, _SECOND = "blocks/attention_norm", "blocks/mlp_norm"
# Groups of G queries, their key and their value.
ROWS = (
    Row("{p}word_embeddings.weight", "embed/embedding", "V D -> V D"),
    Row(_LAYER + "ln_attn.weight", f"{_FIRST}/scale", "D -> D", _has_two),
    Row(_LAYER + "ln_attn.bias", f"{_FIRST}/bias", "D -> D", _has_two),
    Row(_LAYER + "ln_mlp.weight", f"{_SECOND}/scale", "D -> D", _has_two),
    Row(_LAYER + "ln_mlp.bias", f"{_SECOND}/bias", "D -> D", _has_two),
    Row(_LAYER + "input_layernorm.weight", f"{_FIRST}/scale", "D -> D", _has_not_two),
    Row(_LAYER + "input_layernorm.bias", f"{_FIRST}/bias", "D -> D", _has_not_two),
    Row(_LAYER + "post_attention_layernorm.weight", f"{_SECOND}/scale", "D -> D", _has_not_two),
    Row(_LAYER + "post_attention_layernorm.bias", f"{_SECOND}/bias", "D -> D", _has_not_two),
    Row(
        _LAYER + "self_attention.query_key_value.weight",
        _QKV,
        "(K {G,1,1} H) D -> D (K {G,1,1}) H",
    ),
    Row(
        _LAYER + "self_attention.query_key_value.bias",
        tuple(f"{path}_bias" for path in _QKV),
        "(K {G,1,1} H) -> (K {G,1,1}) H",
    ),
    Row(_LAYER + "self_attention.dense.weight", "blocks/attention/output", "D (N H) -> N H D"),
    Row(_LAYER + "self_attention.dense.bias", "blocks/attention/output_bias", "D -> D"),
    Row(_LAYER + "mlp.dense_h_to_4h.weight", "blocks/mlp/up", "F D -> D F"),
    Row(_LAYER + "mlp.dense_h_to_4h.bias", "blocks/mlp/up_bias", "F -> F"),
    Row(_LAYER + "mlp.dense_4h_to_h.weight", "blocks/mlp/down", "D F -> F D"),
    Row(_LAYER + "mlp.dense_4h_to_h.bias", "blocks/mlp/down_bias", "D -> D"),
    Row("{p}ln_f.weight", "final_norm/scale", "D -> D"),
    Row("{p}ln_f.bias", "final_norm/bias", "D -> D"),
    Row(HEAD, "head/kernel", "V D -> D V"),
)

FAMILY = Family(
    model_type="falcon",
    translate=translate,
    rows=ROWS,
    prefixes=("transformer.", ""),
    num_layers_key="num_hidden_layers",
    buffers=(r"(transformer\.)?h\.\d+\.self_attention\.rotary_emb\.inv_freq",),
    mlp_key="ffn_hidden_size",
)
