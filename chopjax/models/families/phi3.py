"""Phi-3, Phi-4 and the minis (transformers' Phi3ForCausalLM; arXiv 2404.14219)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chopjax.models.config import Layer, ModelConfig
from chopjax.models.families import llama
from chopjax.models.families.fields import ACTIVATIONS, decoder, rms, sizes
from chopjax.models.families.options import Options
from chopjax.models.families.rotary import rope
from chopjax.models.families.table import Family, Row

# The files say "su" or "yarn" and mean LongRoPE.
ROPES = {"default": "default", "longrope": "longrope", "su": "longrope", "yarn": "longrope"}


def translate(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json → ModelConfig, with the defaults of transformers' Phi3Config."""
    options = Options(
        raw,
        neutral="embd_pdrop resid_pdrop",
        off={
            "attention_bias": False,
            "mlp_bias": False,
            "lm_head_bias": False,
            "full_attn_mod": 1,
            "interpolate_factor": 1,
        },
    )
    size = sizes(options, 32_064, 3072, 8192, positions=4096)
    positions, head_dim = size["max_positions"], size["head_dim"]
    original = options.size("original_max_position_embeddings", 4096)
    turn = rope(options, positions, head_dim, fraction=1.0, kinds=ROPES, original=original)
    window = options.window("sliding_window", None)
    return decoder(
        options,
        layers=(Layer(window, turn),) * options.layers("num_hidden_layers", 32),
        norm=rms(options, 1e-5),
        activation=options.choice("hidden_act", ACTIVATIONS, "silu"),
        gated_mlp=True,
        **size,
    )


_LAYER = "{p}layers.{l}."
_QKV = tuple(f"blocks/attention/{name}" for name in ("query", "key", "value"))
GATE_UP = Row(
    _LAYER + "mlp.gate_up_proj.weight",
    ("blocks/mlp/gate", "blocks/mlp/up"),
    "({F,F}) D -> D {F,F}",
)
ROWS = (
    llama.EMBEDDING,
    Row(_LAYER + "self_attn.qkv_proj.weight", _QKV, "({N,K,K} H) D -> D {N,K,K} H"),
    *(row for row in llama.ATTENTION if "o_proj" in row.source),
    *llama.NORMS,
    GATE_UP,
    *(row for row in llama.MLP if "down_proj" in row.source),
    *llama.ENDS,
)

FAMILY = Family(
    model_type="phi3",
    translate=translate,
    rows=ROWS,
    prefixes=llama.PREFIXES,
    num_layers_key="num_hidden_layers",
    buffers=llama.BUFFERS,
)
