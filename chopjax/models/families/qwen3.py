"""Qwen3, dense (transformers' Qwen3ForCausalLM; arXiv 2505.09388): QK norm, windows by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chopjax.models.config import Layer, ModelConfig, Norm, QkNorm
from chopjax.models.families import llama
from chopjax.models.families.options import Options, rope
from chopjax.models.families.table import Family, Row

FULL, SLIDING = "full_attention", "sliding_attention"


def translate(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json → ModelConfig. Missing keys take the defaults of transformers' Qwen3Config."""
    options = Options(raw)
    num_heads = options.size("num_attention_heads", 32)
    num_kv_heads = options.nullable("num_key_value_heads", 32)
    num_kv_heads = num_heads if num_kv_heads is None else options.size("num_key_value_heads", 32)
    options.divide("num_attention_heads / num_key_value_heads", num_heads, num_kv_heads)
    head_dim = options.size("head_dim", 128)
    options.divide("head_dim / 2 (RoPE turns pairs)", head_dim, 2)
    max_positions = options.size("max_position_embeddings", 32_768)
    norm = Norm("rms", options.number("rms_norm_eps", 1e-6, above=0))
    bias = options.flag("attention_bias", False)
    config = ModelConfig(
        family="qwen3",
        vocab_size=options.size("vocab_size", 151_936),
        embed_dim=options.size("hidden_size", 4096),
        layers=_layers(options, max_positions),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        mlp_dim=options.size("intermediate_size", 22_016),
        max_positions=max_positions,
        norm=norm,
        activation=options.choice("hidden_act", llama.ACTIVATIONS, "silu"),
        tie_embeddings=options.flag("tie_word_embeddings", False),
        gated_mlp=True,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=QkNorm(norm),
        bos_token_id=options.token("bos_token_id"),
        eos_token_id=options.token("eos_token_id"),
    )
    options.finish(config.num_layers)
    return config


def _layers(options: Options, max_positions: int) -> tuple[Layer, ...]:
    full = Layer(rope=rope(options, max_positions))
    count = options.layers("num_hidden_layers", 32)
    slides = options.flag("use_sliding_window", False)
    window = options.nullable("sliding_window", 4096)
    if slides and window is not None:
        window = options.size("sliding_window", 4096)
    first = options.nullable("max_window_layers", 28)
    stated = options.get("layer_types")
    if stated is None:
        stated = _pattern(count, first if slides and window is not None else count)
    if not isinstance(stated, list) or not set(map(str, stated)) <= {FULL, SLIDING}:
        options.problems.append(f"layer_types: only {FULL} and {SLIDING} are supported")
    elif len(stated) != count:
        options.problems.append(f"layer_types has {len(stated)} entries for {count} layers")
    elif SLIDING in stated and not (slides and window is not None):
        options.problems.append(
            f"layer_types has {SLIDING}, but use_sliding_window is not true or sliding_window null"
        )
    else:
        sliding = Layer(window=window, rope=full.rope)
        return tuple(sliding if kind == SLIDING else full for kind in stated)
    return (full,) * count


def _pattern(count: int, first: Any) -> list[str]:
    """The kinds that transformers infers: full below `max_window_layers`, sliding from there on."""
    first = first if isinstance(first, int) else count
    return [SLIDING if layer >= first else FULL for layer in range(count)]


def layer_lists(raw: Mapping[str, Any]) -> dict[str, list[Any]]:
    """layer_types, also where a config.json leaves it to `max_window_layers`: that is an index, and
    would give other kinds to the layers that stay after a chop."""
    kinds = [SLIDING if layer.window else FULL for layer in translate(raw).layers]
    return {"layer_types": kinds} if SLIDING in kinds or raw.get("layer_types") else {}


_ATTENTION = "{p}layers.{l}.self_attn."
FAMILY = Family(
    model_type="qwen3",
    translate=translate,
    rows=(
        *llama.ROWS,
        Row(_ATTENTION + "q_norm.weight", "blocks/attention/query_norm/scale", "H -> H"),
        Row(_ATTENTION + "k_norm.weight", "blocks/attention/key_norm/scale", "H -> H"),
    ),
    prefixes=("model.", ""),
    num_layers_key="num_hidden_layers",
    layer_lists=layer_lists,
)
