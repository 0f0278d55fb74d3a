"""GPT-NeoX and Pythia (transformers' GPTNeoXForCausalLM; arXiv 2204.06745, 2304.01373)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chopjax.models.config import Layer, ModelConfig
from chopjax.models.families.fields import ACTIVATIONS, decoder, layer_norm, sizes
from chopjax.models.families.options import Options
from chopjax.models.families.rotary import rope
from chopjax.models.families.table import HEAD, Family, Row


def translate(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json → ModelConfig, with the defaults of transformers' GPTNeoXConfig."""
    options = Options(raw, neutral="classifier_dropout hidden_dropout")
    size = sizes(options, 50_432, 6144, 24_576, heads=64, own_head_dim=False)
    size["num_kv_heads"] = size["num_heads"]  # every head has its own, whatever the file says
    turn = rope(
        options,
        size["max_positions"],
        size["head_dim"],
        fraction=0.25,
        theta_key="rotary_emb_base",
        fraction_key="rotary_pct",
    )
    # Files of some versions repeat the two keys under the names that other families have.
    for key, other in {
        "rope_theta": "rotary_emb_base",
        "partial_rotary_factor": "rotary_pct",
    }.items():
        if options.get(key) not in (None, options.get(other)):
            options.problems.append(f"{key} is not {other}, which transformers reads")
    bias = options.flag("attention_bias", True)
    return decoder(
        options,
        layers=(Layer(rope=turn),) * options.layers("num_hidden_layers", 44),
        norm=layer_norm(options, "layer_norm_eps"),
        activation=options.choice("hidden_act", ACTIVATIONS, "gelu"),
        parallel="two_norms" if options.flag("use_parallel_residual", True) else "no",
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=True,
        **size,
    )


_LAYER = "{p}layers.{l}."
_QKV = tuple(f"blocks/attention/{name}" for name in ("query", "key", "value"))
ROWS = (
    Row("{p}embed_in.weight", "embed/embedding", "V D -> V D"),
    Row(_LAYER + "input_layernorm.weight", "blocks/attention_norm/scale", "D -> D"),
    Row(_LAYER + "input_layernorm.bias", "blocks/attention_norm/bias", "D -> D"),
    Row(
        _LAYER + "attention.query_key_value.weight",
        _QKV,
        "(N {1,1,1} H) D -> D (N {1,1,1}) H",
    ),
    Row(
        _LAYER + "attention.query_key_value.bias",
        tuple(f"{path}_bias" for path in _QKV),
        "(N {1,1,1} H) -> (N {1,1,1}) H",
    ),
    Row(_LAYER + "attention.dense.weight", "blocks/attention/output", "D (N H) -> N H D"),
    Row(_LAYER + "attention.dense.bias", "blocks/attention/output_bias", "D -> D"),
    Row(_LAYER + "post_attention_layernorm.weight", "blocks/mlp_norm/scale", "D -> D"),
    Row(_LAYER + "post_attention_layernorm.bias", "blocks/mlp_norm/bias", "D -> D"),
    Row(_LAYER + "mlp.dense_h_to_4h.weight", "blocks/mlp/up", "F D -> D F"),
    Row(_LAYER + "mlp.dense_h_to_4h.bias", "blocks/mlp/up_bias", "F -> F"),
    Row(_LAYER + "mlp.dense_4h_to_h.weight", "blocks/mlp/down", "D F -> F D"),
    Row(_LAYER + "mlp.dense_4h_to_h.bias", "blocks/mlp/down_bias", "D -> D"),
    Row("{p}final_layer_norm.weight", "final_norm/scale", "D -> D"),
    Row("{p}final_layer_norm.bias", "final_norm/bias", "D -> D"),
    Row(HEAD, "head/kernel", "V D -> D V"),
)

FAMILY = Family(
    model_type="gpt_neox",
    translate=translate,
    rows=ROWS,
    prefixes=("gpt_neox.", ""),
    num_layers_key="num_hidden_layers",
    buffers=(r"(gpt_neox\.)?layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",),
    heads=("embed_out", "lm_head"),
)
