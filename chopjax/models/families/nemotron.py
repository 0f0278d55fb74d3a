"""Nemotron-4 and Minitron (transformers' NemotronForCausalLM; arXiv 2402.16819, 2407.14679)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chopjax.models.config import Layer, ModelConfig
from chopjax.models.families import llama, stablelm
from chopjax.models.families.fields import ACTIVATIONS, decoder, layer_norm, sizes
from chopjax.models.families.options import Options
from chopjax.models.families.rotary import rope
from chopjax.models.families.table import Family


def translate(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json → ModelConfig, with the defaults of transformers' NemotronConfig."""
    options = Options(raw)
    size = sizes(options, 256_000, 6144, 24_576, 48, positions=4096)
    if options.get("num_key_value_heads") is None:
        options.problems.append("num_key_value_heads is missing, which transformers needs")
    turn = rope(options, size["max_positions"], size["head_dim"], fraction=0.5)
    bias = options.flag("attention_bias", False)
    return decoder(
        options,
        layers=(Layer(rope=turn),) * options.layers("num_hidden_layers", 32),
        norm=layer_norm(options, "norm_eps", offset=1.0),
        activation=options.choice("hidden_act", ACTIVATIONS, "relu2"),
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=options.flag("mlp_bias", False),
        **size,
    )


FAMILY = Family(
    model_type="nemotron",
    translate=translate,
    rows=(*llama.ROWS, *stablelm.BIASES),
    prefixes=llama.PREFIXES,
    num_layers_key="num_hidden_layers",
    buffers=llama.BUFFERS,
)
