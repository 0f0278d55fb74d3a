"""MPT (transformers' MptForCausalLM): ALiBi (arXiv 2108.12409), norms without biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chopjax.models.config import Layer, ModelConfig
from chopjax.models.families.fields import decoder, layer_norm
from chopjax.models.families.options import Options, shown
from chopjax.models.families.table import HEAD, Family, Row


def translate(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json → ModelConfig, with the defaults of transformers' MptConfig."""
    options = Options(
        raw,
        # learned_pos_emb, expansion_ratio and no_bias say what transformers does not read.
        neutral="emb_pdrop resid_pdrop init_config init_device learned_pos_emb tokenizer_name "
        "verbose fc_type ffn_config",
        off={
            "embedding_fraction": 1.0,
            "expansion_ratio": 4,
            "logit_scale": None,
            "no_bias": True,
            "norm_type": "low_precision_layernorm",
        },
    )
    clip, scale = _attention(options)
    embed_dim = options.size("d_model", 2048)
    num_heads = options.size("n_heads", 16)
    return decoder(
        options,
        layers=(Layer(),) * options.layers("n_layers", 24),
        vocab_size=options.size("vocab_size", 50_368),
        embed_dim=embed_dim,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=options.divide("d_model / n_heads", embed_dim, num_heads),
        mlp_dim=4 * embed_dim,
        max_positions=options.size("max_seq_len", 2048),
        norm=layer_norm(options, "layer_norm_epsilon", bias=False),
        activation="gelu",
        tie_embeddings=options.flag("tie_word_embeddings", True),
        positions="alibi",
        clip_qkv=clip,
        score_scale=scale,
    )


def _attention(options: Options) -> tuple[float | None, float | None]:
    """clip_qkv and softmax_scale of attn_config; the rest must be what transformers computes."""
    raw = options.get("attn_config", {})
    if not isinstance(raw, dict):
        options.problems.append(f"attn_config is {shown(raw)}; an object is needed")
        return None, None
    inner = Options(
        raw,
        neutral="attn_impl attn_pdrop softmax_scale clip_qkv kv_n_heads",
        off={
            "alibi": True,
            "alibi_bias_max": 8,  # whatever the file says, transformers computes 8's slopes
            "attn_type": "multihead_attention",
            "attn_uses_sequence_id": False,
            "prefix_lm": False,
            "qk_ln": False,
        },
    )
    clip, scale = inner.cap("clip_qkv", None), inner.cap("softmax_scale", None)
    inner.check(0)
    options.problems += [f"attn_config: {problem}" for problem in inner.problems]
    return clip, scale


_LAYER = "{p}blocks.{l}."
_QKV = tuple(f"blocks/attention/{name}" for name in ("query", "key", "value"))
ROWS = (
    Row("{p}wte.weight", "embed/embedding", "V D -> V D"),
    Row(_LAYER + "norm_1.weight", "blocks/attention_norm/scale", "D -> D"),
    Row(_LAYER + "attn.Wqkv.weight", _QKV, "({N,K,K} H) D -> D {N,K,K} H"),
    Row(_LAYER + "attn.out_proj.weight", "blocks/attention/output", "D (N H) -> N H D"),
    Row(_LAYER + "norm_2.weight", "blocks/mlp_norm/scale", "D -> D"),
    Row(_LAYER + "ffn.up_proj.weight", "blocks/mlp/up", "F D -> D F"),
    Row(_LAYER + "ffn.down_proj.weight", "blocks/mlp/down", "D F -> F D"),
    Row("{p}norm_f.weight", "final_norm/scale", "D -> D"),
    Row(HEAD, "head/kernel", "V D -> D V"),
)

FAMILY = Family(
    model_type="mpt",
    translate=translate,
    rows=ROWS,
    prefixes=("transformer.", ""),
    num_layers_key="n_layers",
    mlp_key=None,
)
