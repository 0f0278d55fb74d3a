"""StableLM (transformers' StableLmForCausalLM; arXiv 2402.17834), those without QK norm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chopjax.models.config import Layer, ModelConfig
from chopjax.models.families import llama
from chopjax.models.families.fields import ACTIVATIONS, decoder, layer_norm, sizes
from chopjax.models.families.options import Options
from chopjax.models.families.rotary import rope
from chopjax.models.families.table import Family, Row


def translate(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json → ModelConfig, with the defaults of transformers' StableLmConfig."""
    # The norm of queries and keys has a tensor for every head.
    options = Options(
        raw, neutral="hidden_dropout rotary_scaling_factor", off={"qk_layernorm": False}
    )
    size = sizes(options, 50_304, 2560, 6912, kv_heads=32, positions=4096, own_head_dim=False)
    turn = rope(options, size["max_positions"], size["head_dim"], fraction=0.25)
    return decoder(
        options,
        layers=(Layer(rope=turn),) * options.layers("num_hidden_layers", 32),
        norm=layer_norm(options, "layer_norm_eps"),
        activation=options.choice("hidden_act", ACTIVATIONS, "silu"),
        parallel="one_norm" if options.flag("use_parallel_residual", False) else "no",
        gated_mlp=True,
        qkv_bias=options.flag("use_qkv_bias", False),
        **size,
    )


_LAYER = "{p}layers.{l}."
BIASES = (
    Row(_LAYER + "input_layernorm.bias", "blocks/attention_norm/bias", "D -> D"),
    Row(_LAYER + "post_attention_layernorm.bias", "blocks/mlp_norm/bias", "D -> D"),
    Row("{p}norm.bias", "final_norm/bias", "D -> D"),
)

FAMILY = Family(
    model_type="stablelm",
    translate=translate,
    rows=(*llama.ROWS, *BIASES),
    prefixes=llama.PREFIXES,
    num_layers_key="num_hidden_layers",
    buffers=llama.BUFFERS,
)
