"""Qwen3 with experts in every layer (transformers' Qwen3MoeForCausalLM; arXiv 2505.09388)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chopjax.models.config import Layer, ModelConfig, QkNorm
from chopjax.models.families import llama, mixtral, olmoe, qwen3
from chopjax.models.families.fields import ACTIVATIONS, decoder, experts, rms, sizes
from chopjax.models.families.options import Options, shown
from chopjax.models.families.rotary import rope
from chopjax.models.families.table import Family


def translate(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json → ModelConfig, with the defaults of transformers' Qwen3MoeConfig.

    max_window_layers is Qwen2's: transformers gives every layer the window here. intermediate_size
    is that of layers without experts, which are refused.
    """
    options = Options(raw, neutral=mixtral.NEUTRAL + " max_window_layers")
    size = sizes(options, 151_936, 2048, 6144, 32, kv_heads=4, positions=32_768)
    size["mlp_dim"] = options.size("moe_intermediate_size", 768)
    turn = rope(options, size["max_positions"], size["head_dim"])
    window = options.window("sliding_window", 4096)
    if not options.flag("use_sliding_window", False):
        window = None
    if dense := options.get("mlp_only_layers", []):
        options.problems.append(
            f"mlp_only_layers is {shown(dense)}: layers with and without experts are two stacks, "
            "and chopjax has one; all layers must have experts"
        )
    if (step := options.size("decoder_sparse_step", 1)) != 1:
        options.problems.append(
            f"decoder_sparse_step is {step}: every layer must have experts, so only 1 is supported"
        )
    norm = rms(options, 1e-6)
    bias = options.flag("attention_bias", False)
    count = options.layers("num_hidden_layers", 24)
    return decoder(
        options,
        layers=(Layer(window, turn),) * count,
        norm=norm,
        activation=options.choice("hidden_act", ACTIVATIONS, "silu"),
        gated_mlp=True,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=QkNorm(norm),
        experts=experts(options, count, 128, 8, options.flag("norm_topk_prob", False)),
        **size,
    )


FAMILY = Family(
    model_type="qwen3_moe",
    translate=translate,
    rows=(
        llama.EMBEDDING,
        *llama.ATTENTION,
        *qwen3.QK_NORMS,
        *llama.NORMS,
        *olmoe.MLP,
        *llama.ENDS,
    ),
    prefixes=llama.PREFIXES,
    num_layers_key="num_hidden_layers",
    buffers=llama.BUFFERS,
)
