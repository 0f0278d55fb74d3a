"""Mixtral (transformers' MixtralForCausalLM; arXiv 2401.04088): Mistral with experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chopjax.models.config import Layer, ModelConfig
from chopjax.models.families import llama
from chopjax.models.families.fields import ACTIVATIONS, decoder, experts, rms, sizes
from chopjax.models.families.options import Options
from chopjax.models.families.rotary import rope
from chopjax.models.families.table import Family, Row

# What transformers reads in training alone: noise in the router, and the loss that keeps experts
# equally busy.
NEUTRAL = "output_router_logits router_aux_loss_coef router_jitter_noise"


def translate(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json → ModelConfig, with the defaults of transformers' MixtralConfig."""
    options = Options(raw, neutral=NEUTRAL)
    size = sizes(options, mlp=14_336, kv_heads=8, positions=131_072)
    turn = rope(options, size["max_positions"], size["head_dim"], theta=1e6)
    window = options.window("sliding_window", None)
    count = options.layers("num_hidden_layers", 32)
    return decoder(
        options,
        layers=(Layer(window, turn),) * count,
        norm=rms(options, 1e-5),
        activation=options.choice("hidden_act", ACTIVATIONS, "silu"),
        gated_mlp=True,
        experts=experts(options, count, 8, 2, renormalise=True),
        **size,
    )


_MOE = "{p}layers.{l}.block_sparse_moe."
_EXPERT = _MOE + "experts.{e}."

FAMILY = Family(
    model_type="mixtral",
    translate=translate,
    rows=(
        llama.EMBEDDING,
        *llama.ATTENTION,
        *llama.NORMS,
        Row(_MOE + "gate.weight", "blocks/mlp/router", "X D -> D X"),
        Row(_EXPERT + "w1.weight", "blocks/mlp/gate", "F D -> D F"),
        Row(_EXPERT + "w3.weight", "blocks/mlp/up", "F D -> D F"),
        Row(_EXPERT + "w2.weight", "blocks/mlp/down", "D F -> F D"),
        *llama.ENDS,
    ),
    prefixes=llama.PREFIXES,
    num_layers_key="num_hidden_layers",
    buffers=llama.BUFFERS,
)
