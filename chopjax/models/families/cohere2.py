"""Cohere's Command R7B (transformers' Cohere2ForCausalLM; arXiv 2504.00698): windows, and full
layers without RoPE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chopjax.models.config import ModelConfig
from chopjax.models.families import cohere, llama
from chopjax.models.families.fields import kinds, layers, sizes
from chopjax.models.families.options import Options
from chopjax.models.families.rotary import rope
from chopjax.models.families.table import Family


def translate(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json → ModelConfig, with the defaults of transformers' Cohere2Config."""
    options = Options(
        raw,
        neutral="cache_implementation layer_switch use_embedding_sharing "
        "use_parallel_embedding _sliding_window_pattern",
        off={
            "order_of_interleaved_layers": "local_attn_first",
            "position_embedding_type": "rope_gptj",
            "rotary_pct": 1,
            "use_gated_activation": True,
            "use_parallel_block": True,
            "use_qk_norm": False,
        },
    )
    size = sizes(options, 256_000, 8192, 22_528, 64, positions=8192, tied=True, own_head_dim=False)
    turn = rope(options, size["max_positions"], size["head_dim"], interleaved=True)
    window = options.window("sliding_window", 4096)
    count = options.layers("num_hidden_layers", 40)
    period = options.size("sliding_window_pattern", 4)
    sliding = kinds(options, count, lambda i: (i + 1) % period != 0, window)
    return cohere.with_layers(options, size, layers(sliding, window, None, turn), qk_norm=False)


FAMILY = Family(
    model_type="cohere2",
    translate=translate,
    rows=cohere.ROWS,
    prefixes=llama.PREFIXES,
    num_layers_key="num_hidden_layers",
    buffers=llama.BUFFERS,
)
