"""GPT-Neo (transformers' GPTNeoForCausalLM): local layers by turns, unscaled scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chopjax.models.config import Layer, ModelConfig
from chopjax.models.families.fields import ACTIVATIONS, decoder, layer_norm
from chopjax.models.families.options import Options
from chopjax.models.families.table import HEAD, Family, Row


def translate(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json → ModelConfig, with the defaults of transformers' GPTNeoConfig."""
    options = Options(
        raw,
        neutral="classifier_dropout embed_dropout resid_dropout "
        "summary_activation summary_first_dropout summary_proj_to_labels summary_type "
        "summary_use_proj",
    )
    embed_dim = options.size("hidden_size", 2048)
    num_heads = options.size("num_heads", 16)
    count = options.layers("num_layers", 24)
    window = options.size("window_size", 256)
    local = [kind == "local" for kind in _kinds(options, count)]
    return decoder(
        options,
        layers=tuple(Layer(window if is_local else None) for is_local in local),
        vocab_size=options.size("vocab_size", 50_257),
        embed_dim=embed_dim,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=options.divide("hidden_size / num_heads", embed_dim, num_heads),
        mlp_dim=options.size("intermediate_size", 4 * embed_dim),
        max_positions=options.size("max_position_embeddings", 2048),
        norm=layer_norm(options, "layer_norm_epsilon"),
        activation=options.choice("activation_function", ACTIVATIONS, "gelu_new"),
        tie_embeddings=options.flag("tie_word_embeddings", True),
        positions="learned",
        output_bias=True,
        mlp_bias=True,
        score_scale=1.0,
    )


def _kinds(options: Options, count: int) -> list[str]:
    """attention_types is run-length coded: [[["global", "local"], 12]] is twelve times the two.

    attention_layers, a list with an entry a layer, has the last word where the file has it.
    """
    stated = options.get("attention_layers")
    if stated is not None:
        stated = [[stated, 1]]
    runs = options.get("attention_types", [[["global", "local"], max(count // 2, 1)]])
    runs = runs if stated is None else stated
    try:
        kinds = [
            str(kind)
            for names, times in runs
            for kind in list(names) * (times if 0 < times <= count else 1)
        ]
    except (TypeError, ValueError):
        kinds = []
    if len(kinds) != count or not set(kinds) <= {"global", "local"}:
        options.problems.append(
            f"attention_types must say global or local for {count} layers: [[[kind, …], times], …]"
        )
        return ["global"] * count
    return kinds


_LAYER = "{p}h.{l}."
_ATTENTION = _LAYER + "attn.attention."
ROWS = (
    Row("{p}wte.weight", "embed/embedding", "V D -> V D"),
    Row("{p}wpe.weight", "embed/positions", "P D -> P D"),
    Row(_LAYER + "ln_1.weight", "blocks/attention_norm/scale", "D -> D"),
    Row(_LAYER + "ln_1.bias", "blocks/attention_norm/bias", "D -> D"),
    Row(_ATTENTION + "q_proj.weight", "blocks/attention/query", "(N H) D -> D N H"),
    Row(_ATTENTION + "k_proj.weight", "blocks/attention/key", "(K H) D -> D K H"),
    Row(_ATTENTION + "v_proj.weight", "blocks/attention/value", "(K H) D -> D K H"),
    Row(_ATTENTION + "out_proj.weight", "blocks/attention/output", "D (N H) -> N H D"),
    Row(_ATTENTION + "out_proj.bias", "blocks/attention/output_bias", "D -> D"),
    Row(_LAYER + "ln_2.weight", "blocks/mlp_norm/scale", "D -> D"),
    Row(_LAYER + "ln_2.bias", "blocks/mlp_norm/bias", "D -> D"),
    Row(_LAYER + "mlp.c_fc.weight", "blocks/mlp/up", "F D -> D F"),
    Row(_LAYER + "mlp.c_fc.bias", "blocks/mlp/up_bias", "F -> F"),
    Row(_LAYER + "mlp.c_proj.weight", "blocks/mlp/down", "D F -> F D"),
    Row(_LAYER + "mlp.c_proj.bias", "blocks/mlp/down_bias", "D -> D"),
    Row("{p}ln_f.weight", "final_norm/scale", "D -> D"),
    Row("{p}ln_f.bias", "final_norm/bias", "D -> D"),
    Row(HEAD, "head/kernel", "V D -> D V"),
)

FAMILY = Family(
    model_type="gpt_neo",
    translate=translate,
    rows=ROWS,
    prefixes=("transformer.", ""),
    num_layers_key="num_layers",
    buffers=(r"(transformer\.)?h\.\d+\.attn\.attention\.(bias|masked_bias)",),
)
