"""OLMo 3 (transformers' Olmo3ForCausalLM): OLMo 2 with windows in three of four layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chopjax.models.config import ModelConfig
from chopjax.models.families import llama, olmo2
from chopjax.models.families.fields import kinds, layers, sizes
from chopjax.models.families.options import Options
from chopjax.models.families.rotary import by_kind
from chopjax.models.families.table import Family


def translate(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json → ModelConfig, with the defaults of transformers' Olmo3Config."""
    options = Options(raw)
    size = sizes(options, 50_304)
    # rope_theta is that of the full layers; those with a window keep theirs.
    theta = options.number("rope_theta", 5e5, above=0)
    far, near = by_kind(options, size["max_positions"], size["head_dim"], theta, 5e5)
    window = options.window("sliding_window", 4096)
    count = options.layers("num_hidden_layers", 32)
    sliding = kinds(options, count, lambda i: (i + 1) % 4 != 0, window)
    return olmo2.with_layers(options, size, layers(sliding, window, far, near))


FAMILY = Family(
    model_type="olmo3",
    translate=translate,
    rows=olmo2.ROWS,
    prefixes=llama.PREFIXES,
    num_layers_key="num_hidden_layers",
    buffers=llama.BUFFERS,
)
