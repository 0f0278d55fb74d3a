"""Hunyuan, dense (transformers' HunYuanDenseV1ForCausalLM): QK norm behind the rotation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from chopjax.models.config import Layer, ModelConfig, QkNorm, Rope
from chopjax.models.families import llama
from chopjax.models.families.fields import ACTIVATIONS, decoder, rms, sizes
from chopjax.models.families.options import SMALL, Options
from chopjax.models.families.rotary import rope
from chopjax.models.families.table import Family, Row


def translate(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json → ModelConfig, with the defaults of transformers' HunYuanDenseV1Config."""
    options = Options(
        raw,
        neutral="eod_token_id im_end_id im_newline_id im_start_id org_vocab_size sep_token_id "
        "text_start_id text_end_id cla_share_factor",
        off={"norm_type": "rms", "qk_norm": True, "use_cla": False, "use_qk_norm": True},
    )
    size = sizes(options, 290_943)
    if options.get("attention_head_dim", size["head_dim"]) != size["head_dim"]:
        options.problems.append("attention_head_dim is not head_dim, which transformers reads")
    turn = _rope(options, size["max_positions"], size["head_dim"])
    norm = rms(options, 1e-5)
    bias = options.flag("attention_bias", False)
    return decoder(
        options,
        layers=(Layer(rope=turn),) * options.layers("num_hidden_layers", 32),
        norm=norm,
        activation=options.choice("hidden_act", ACTIVATIONS, "silu"),
        gated_mlp=True,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=QkNorm(norm, after_rope=True),
        **size,
    )


def _rope(options: Options, max_positions: int, head_dim: int) -> Rope:
    """The files say "dynamic" with a fixed `alpha`, which stretches theta and nothing else."""
    scaling = options.raw.get("rope_scaling") or options.raw.get("rope_parameters")
    if not isinstance(scaling, dict) or not scaling.get("alpha"):
        return rope(options, max_positions, head_dim)
    if scaling.get("rope_type", scaling.get("type")) != "dynamic":
        options.problems.append("alpha is for rope_type dynamic alone")
    inner = Options(scaling)
    alpha = inner.number("alpha", 1.0, above=SMALL)
    options.problems += inner.problems
    if head_dim <= 2:
        options.problems.append(f"head_dim {head_dim}: alpha needs more than one pair that turns")
        alpha = 1.0
    key = "rope_scaling" if options.raw.get("rope_scaling") else "rope_parameters"
    plain = {name: value for name, value in scaling.items() if name != "alpha"}
    options.raw = {**options.raw, key: plain}
    turn = rope(options, max_positions, head_dim)
    stretch = alpha ** (head_dim / max(head_dim - 2, 1))
    return dataclasses.replace(turn, theta=turn.theta * stretch)


_ATTENTION = "{p}layers.{l}.self_attn."
QK_NORMS = (
    Row(_ATTENTION + "query_layernorm.weight", "blocks/attention/query_norm/scale", "H -> H"),
    Row(_ATTENTION + "key_layernorm.weight", "blocks/attention/key_norm/scale", "H -> H"),
)

FAMILY = Family(
    model_type="hunyuan_v1_dense",
    translate=translate,
    rows=(*llama.ROWS, *QK_NORMS),
    prefixes=llama.PREFIXES,
    num_layers_key="num_hidden_layers",
    buffers=llama.BUFFERS,
)
