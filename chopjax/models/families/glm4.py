"""GLM-4-0414 (transformers' Glm4ForCausalLM): GLM-4-9B with norms before and after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chopjax.models.config import ModelConfig
from chopjax.models.families import glm, llama
from chopjax.models.families.table import Family, Row


def translate(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json → ModelConfig, with the defaults of transformers' Glm4Config."""
    return glm.with_norms(raw, "both")


_LAYER = "{p}layers.{l}."
NORMS = (
    Row(_LAYER + "input_layernorm.weight", "blocks/attention_norm/scale", "D -> D"),
    Row(_LAYER + "post_self_attn_layernorm.weight", "blocks/attention_output_norm/scale", "D -> D"),
    Row(_LAYER + "post_attention_layernorm.weight", "blocks/mlp_norm/scale", "D -> D"),
    Row(_LAYER + "post_mlp_layernorm.weight", "blocks/mlp_output_norm/scale", "D -> D"),
)

FAMILY = Family(
    model_type="glm4",
    translate=translate,
    rows=(llama.EMBEDDING, *llama.ATTENTION, *NORMS, *glm.MLP, *llama.ENDS),
    prefixes=llama.PREFIXES,
    num_layers_key="num_hidden_layers",
    buffers=llama.BUFFERS,
)
