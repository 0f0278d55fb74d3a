"""What most families spell alike in config.json: sizes, kinds of layers, how a reading ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from chopjax.models.config import Experts, Layer, ModelConfig, Norm, Rope
from chopjax.models.families.options import Options

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}
MAX_EXPERTS = 100_000  # of all layers together: the files have three tensors for each
FULL, SLIDING = "full_attention", "sliding_attention"


def sizes(
    options: Options,
    vocab: int = 32_000,
    width: int = 4096,
    mlp: int = 11_008,
    heads: int = 32,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    positions: int = 2048,
    tied: bool = False,
    own_head_dim: bool = True,
) -> dict[str, Any]:
    """Fields of ModelConfig under Llama's keys. The arguments are what missing keys mean.

    kv_heads None: as many as query heads, which null always means. head_dim None: width / heads.
    own_head_dim: whether the family takes another one.
    """
    embed_dim = options.size("hidden_size", width)
    num_heads = options.size("num_attention_heads", heads)
    num_kv_heads = options.nullable("num_key_value_heads", kv_heads)
    if num_kv_heads is not None:
        num_kv_heads = options.size("num_key_value_heads", kv_heads)
        options.divide("num_attention_heads / num_key_value_heads", num_heads, num_kv_heads)
    if options.nullable("head_dim", head_dim) is None:
        head_dim = options.divide("hidden_size / num_attention_heads", embed_dim, num_heads)
    else:
        head_dim = options.size("head_dim", head_dim)
        if not own_head_dim and head_dim * num_heads != embed_dim:
            options.problems.append(
                f"head_dim {head_dim}: only hidden_size / num_attention_heads is supported"
            )
    return {
        "vocab_size": options.size("vocab_size", vocab),
        "embed_dim": embed_dim,
        "num_heads": num_heads,
        "num_kv_heads": num_heads if num_kv_heads is None else num_kv_heads,
        "head_dim": head_dim,
        "mlp_dim": options.size("intermediate_size", mlp),
        "max_positions": options.size("max_position_embeddings", positions),
        "tie_embeddings": options.flag("tie_word_embeddings", tied),
    }


def experts(
    options: Options, layers: int, count: int, per_token: int, renormalise: bool
) -> Experts:
    """Under either of the keys that transformers has for their number, of which it writes the
    other back. count, per_token: what missing keys mean."""
    names = [key for key in ("num_local_experts", "num_experts") if options.get(key) is not None]
    counts = [options.size(key) for key in names] or [count]
    if len(set(counts)) > 1:
        options.problems.append(f"num_local_experts is {counts[0]}, and num_experts {counts[1]}")
    if counts[0] * layers > MAX_EXPERTS:
        options.problems.append(f"{counts[0]:,} experts in each layer are not supported")
    per_token = options.size("num_experts_per_tok", per_token)
    if per_token > counts[0]:
        options.problems.append(f"num_experts_per_tok is {per_token}, of {counts[0]} experts")
    return Experts(counts[0], per_token, renormalise)


def rms(options: Options, epsilon: float, offset: float = 0.0) -> Norm:
    return Norm("rms", options.number("rms_norm_eps", epsilon, above=0), offset=offset)


def layer_norm(options: Options, key: str, bias: bool = True, offset: float = 0.0) -> Norm:
    """Layer norm whose epsilon is 1e-5 where the key is missing."""
    return Norm("layer", options.number(key, 1e-5, above=0), bias=bias, offset=offset)


def kinds(
    options: Options, count: int, slides: Callable[[int], bool], window: int | None
) -> list[bool]:
    """For every layer whether it has the window: as layer_types says, or, without it, `slides`."""
    stated = options.get("layer_types")
    if stated is None:
        stated = [SLIDING if slides(layer) else FULL for layer in range(count)]
    if not isinstance(stated, list) or not set(map(str, stated)) <= {FULL, SLIDING}:
        options.problems.append(f"layer_types: only {FULL} and {SLIDING} are supported")
    elif len(stated) != count:
        options.problems.append(f"layer_types has {len(stated)} entries for {count} layers")
    elif SLIDING in stated and window is None:
        options.problems.append(
            f"layers of {SLIDING}, and no window: sliding_window is null, or use_sliding_window is "
            "not true"
        )
    else:
        return [kind == SLIDING for kind in stated]
    return [False] * count


def layers(
    sliding: list[bool], window: int | None, full: Rope | None, turn: Rope | None
) -> tuple[Layer, ...]:
    """Full layers turn by `full`, those with a window by `turn`."""
    return tuple(Layer(window, turn) if slides else Layer(None, full) for slides in sliding)


def decoder(options: Options, layers: tuple[Layer, ...], **fields: Any) -> ModelConfig:
    """The ModelConfig of these fields. Raises UserError for what config.json asks for beyond them.

    LongRoPE's own stretch holds within the original context alone: it is the model's context here.
    """
    bounds = [
        layer.rope.original_max_positions
        for layer in layers
        if layer.rope is not None and layer.rope.kind == "longrope"
    ]
    fields["max_positions"] = min([fields["max_positions"], *bounds])
    config = ModelConfig(
        family=str(options.raw["model_type"]),
        layers=layers,
        bos_token_id=options.token("bos_token_id"),
        eos_token_id=options.token("eos_token_id"),
        **fields,
    )
    options.finish(config.num_layers)
    return config
