"""SmolLM3 (transformers' SmolLM3ForCausalLM): every fourth layer without RoPE (2501.18795)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chopjax.models.config import Layer, ModelConfig
from chopjax.models.families import llama
from chopjax.models.families.fields import ACTIVATIONS, decoder, kinds, rms, sizes
from chopjax.models.families.options import Options
from chopjax.models.families.rotary import rope
from chopjax.models.families.table import Family


def translate(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json → ModelConfig, with the defaults of transformers' SmolLM3Config."""
    options = Options(raw, neutral="max_window_layers")
    size = sizes(options, 128_256, 2048, 11_008, 16, kv_heads=4, positions=32_768, tied=True)
    turn = rope(options, size["max_positions"], size["head_dim"], theta=2e6)
    bias = options.flag("attention_bias", False)
    count = options.layers("num_hidden_layers", 36)
    window = options.window("sliding_window", None)
    if not options.flag("use_sliding_window", False):
        window = None
    turns = _turns(options, count)
    sliding = kinds(options, count, lambda i: window is not None and not turns[i], window)
    return decoder(
        options,
        layers=tuple(
            Layer(window if slides else None, turn if turned else None)
            for slides, turned in zip(sliding, turns, strict=True)
        ),
        norm=rms(options, 1e-6),
        activation=options.choice("hidden_act", ACTIVATIONS, "silu"),
        gated_mlp=True,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=options.flag("mlp_bias", False),
        **size,
    )


def _turns(options: Options, count: int) -> list[bool]:
    """For every layer whether it has RoPE. no_rope_layers says 1 where it has."""
    interval = options.size("no_rope_layer_interval", 4)
    stated = options.get("no_rope_layers")
    if stated is None:
        return [(layer + 1) % interval != 0 for layer in range(count)]
    if isinstance(stated, list) and len(stated) == count and all(x in (0, 1) for x in stated):
        return [bool(x) for x in stated]
    options.problems.append(f"no_rope_layers must be a list of {count} times 0 or 1")
    return [True] * count


FAMILY = Family(
    model_type="smollm3",
    translate=translate,
    rows=llama.ROWS,
    prefixes=llama.PREFIXES,
    num_layers_key="num_hidden_layers",
    buffers=llama.BUFFERS,
)
