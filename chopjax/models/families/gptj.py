"""GPT-J (transformers' GPTJForCausalLM): attention beside feed-forward, a head with a bias."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chopjax.models.config import Layer, ModelConfig, Rope
from chopjax.models.families.fields import ACTIVATIONS, decoder, layer_norm
from chopjax.models.families.options import Options
from chopjax.models.families.table import HEAD, Family, Row


def translate(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json → ModelConfig, with the defaults of transformers' GPTJConfig."""
    options = Options(
        raw,
        neutral="attn_pdrop embd_pdrop resid_pdrop n_ctx summary_activation summary_first_dropout "
        "summary_proj_to_labels summary_type summary_use_proj",
        off={"rotary": True, "scale_attn_weights": True},
    )
    embed_dim = options.size("n_embd", 4096)
    num_heads = options.size("n_head", 16)
    head_dim = options.divide("n_embd / n_head", embed_dim, num_heads)
    dims = options.size("rotary_dim", 64)
    if dims % 2 or dims > head_dim:
        options.problems.append(f"rotary_dim {dims} is not even, or more than a head's {head_dim}")
    turn = Rope(dims=dims, interleaved=True)
    return decoder(
        options,
        layers=(Layer(rope=turn),) * options.layers("n_layer", 28),
        vocab_size=options.size("vocab_size", 50_400),
        embed_dim=embed_dim,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=head_dim,
        mlp_dim=options.size("n_inner", 4 * embed_dim),
        max_positions=options.size("n_positions", 2048),
        norm=layer_norm(options, "layer_norm_epsilon"),
        activation=options.choice("activation_function", ACTIVATIONS, "gelu_new"),
        tie_embeddings=options.flag("tie_word_embeddings", False),
        parallel="one_norm",
        mlp_bias=True,
        head_bias=True,
    )


_LAYER = "{p}h.{l}."
ROWS = (
    Row("{p}wte.weight", "embed/embedding", "V D -> V D"),
    Row(_LAYER + "ln_1.weight", "blocks/attention_norm/scale", "D -> D"),
    Row(_LAYER + "ln_1.bias", "blocks/attention_norm/bias", "D -> D"),
    Row(_LAYER + "attn.q_proj.weight", "blocks/attention/query", "(N H) D -> D N H"),
    Row(_LAYER + "attn.k_proj.weight", "blocks/attention/key", "(K H) D -> D K H"),
    Row(_LAYER + "attn.v_proj.weight", "blocks/attention/value", "(K H) D -> D K H"),
    Row(_LAYER + "attn.out_proj.weight", "blocks/attention/output", "D (N H) -> N H D"),
    Row(_LAYER + "mlp.fc_in.weight", "blocks/mlp/up", "F D -> D F"),
    Row(_LAYER + "mlp.fc_in.bias", "blocks/mlp/up_bias", "F -> F"),
    Row(_LAYER + "mlp.fc_out.weight", "blocks/mlp/down", "D F -> F D"),
    Row(_LAYER + "mlp.fc_out.bias", "blocks/mlp/down_bias", "D -> D"),
    Row("{p}ln_f.weight", "final_norm/scale", "D -> D"),
    Row("{p}ln_f.bias", "final_norm/bias", "D -> D"),
    Row(HEAD, "head/kernel", "V D -> D V"),
    Row("{h}.bias", "head/bias", "V -> V"),
)

FAMILY = Family(
    model_type="gptj",
    translate=translate,
    rows=ROWS,
    prefixes=("transformer.", ""),
    num_layers_key="n_layer",
    buffers=(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",),
    mlp_key="n_inner",
)
