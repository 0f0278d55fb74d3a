"""The chop registry: one row a model_type, with what differs by layer and how it follows.

Read from transformers 5.23: the tensors' names from modeling_*.py, fields and patterns from
configuration_*.py. Lists that any config may have (layer_types, …) need no word: see
structure.COMMON. What has no row is in inferred.py. No jax.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from chopjax.checkpoint.layer_fields import (
    CHUNKED,
    FULL,
    LINEAR,
    MAX_INDEX,
    SLIDING,
    Config,
    Field,
    Indices,
    Letters,
    Listed,
    Spelled,
    always,
    every,
    flag,
    one_a_layer,
    whole,
)
from chopjax.checkpoint.layer_rules import (
    EndsWith,
    FirstLayers,
    FromToStep,
    Holds,
    Must,
    PeriodAndOffset,
    Repeated,
    SharedKeys,
    SparseSteps,
)
from chopjax.checkpoint.structure import Packed, Structure
from chopjax.models.families.table import Family

LAYERS, BLOCKS = ("model.layers.", "layers."), ("transformer.h.", "h.")
MOE = "it is a mixture of experts"
MLA = "its attention goes through a compressed latent (MLA), and it is a mixture of experts"
HYBRID = "some of its layers are not attention"
TOWER = "a vision tower stands beside the language model"


# ------------------------------------------------------ patterns over indices, as transformers' own


def _from_index(switch: str | None, default: int) -> Callable[[Config, int], list[Any]]:
    """qwen2, qwen3, dots1: full below max_window_layers, sliding from there on.

    switch: the key without which nothing slides.
    """

    def pattern(config: Config, num_layers: int) -> list[Any]:
        slides = switch is None or flag(config, switch, False)
        slides = slides and config.get("sliding_window", 4096) is not None
        first = whole(config, "max_window_layers", default)
        return [SLIDING if slides and layer >= first else FULL for layer in range(num_layers)]

    return pattern


def _qwen2_moe(config: Config, num_layers: int) -> list[Any]:
    slides = flag(config, "use_sliding_window", False)
    last = whole(config, "max_window_layers", 28)
    return [
        SLIDING if slides and layer < last and (layer + 1) % 2 else FULL
        for layer in range(num_layers)
    ]


def _turns(config: Config, num_layers: int) -> list[Any]:
    """smollm3, llama4: 1 for a layer with RoPE, 0 for one without."""
    period = whole(config, "no_rope_layer_interval", 4, 1)
    return [int((layer + 1) % period != 0) for layer in range(num_layers)]


def _stated_turns(config: Config, num_layers: int) -> list[Any]:
    if not config.get("no_rope_layers"):
        return _turns(config, num_layers)
    return one_a_layer(config, "no_rope_layers", num_layers, MAX_INDEX)[:num_layers]


def _smollm3(config: Config, num_layers: int) -> list[Any]:
    slides = flag(config, "use_sliding_window", False) and config.get("sliding_window") is not None
    turns = _stated_turns(config, num_layers)
    return [SLIDING if slides and not turn else FULL for turn in turns]


def _llama4(config: Config, num_layers: int) -> list[Any]:
    return [CHUNKED if turn else FULL for turn in _stated_turns(config, num_layers)]


def _llama4_sparse(config: Config, num_layers: int) -> list[int]:
    step = whole(config, "interleave_moe_layer_step", 1, 1)
    return list(range(step - 1, num_layers, step))


def _first_dense(config: Config, num_layers: int) -> list[Any]:
    return ["dense"] + ["sparse"] * (num_layers - 1)


def _mimo(config: Config, num_layers: int) -> list[Any]:
    return [FULL if layer == 0 or not (layer + 1) % 6 else SLIDING for layer in range(num_layers)]


def _olmo_hybrid(config: Config, num_layers: int) -> list[Any]:
    last = num_layers - 1
    return [
        FULL if i % 4 == 3 or (i == last and num_layers < 4) else LINEAR for i in range(num_layers)
    ]


def _gemma4(config: Config, num_layers: int) -> list[Any]:
    last = num_layers - 1
    return [SLIDING if (i + 1) % 6 and i < last else FULL for i in range(num_layers)]


def _gemma3n_sparsity(config: Config, num_layers: int) -> list[Any]:
    return [0.95 if layer < 10 < num_layers else 0.0 for layer in range(num_layers)]


WINDOWS_FROM = Spelled(
    "layer_types",
    _from_index("use_sliding_window", 28),
    "full below max_window_layers, where use_sliding_window",
)
TURNS = Spelled("no_rope_layers", _turns, "0 where (i+1) % no_rope_layer_interval (4) = 0", True)
INTERVALS = every("full_attention_interval", 4, others=LINEAR)
STEPS = SparseSteps()
FIVES = always(5)
SIXES = Spelled("layer_types", _gemma4, "full_attention where (i+1) % 6 = 0, and the last")
FOURS = Spelled("layer_types", _olmo_hybrid, "full_attention where i % 4 = 3")
PER_LAYER_INPUTS = (
    Packed("embed_tokens_per_layer.weight", 1),
    Packed("per_layer_model_projection.weight", 0),
)
SHARING = "its layers share keys, and have inputs of their own"


# --------------------------------------------------------------------------------------- the table


def _row(
    model_type: str, *fields: Field, stems: tuple[str, ...] = LAYERS, **about: Any
) -> Structure:
    return Structure(model_type, stems, fields, **about)


def _dense_then_sparse(
    model_type: str, default: int, extra: int = 0, why: str = MOE, near: str = "llama"
) -> Structure:
    """DeepSeek's shape: the first layers dense, and layers of multi-token prediction behind."""
    return _row(
        model_type,
        FirstLayers("first_k_dense_replace", default),
        Must("moe_layer_freq", (1,), "which layers have experts would change with their index"),
        behind=("num_nextn_predict_layers", extra),
        why=why,
        near=near,
    )


_ALIKE = """\
llama mistral ministral ministral3 phi phi3 gemma olmo olmo2 cohere granite nemotron helium ernie4_5
seed_oss arcee internlm3 hunyuan_v1_dense glm glm4 stablelm starcoder2 persimmon apertus hyperclovax
iquestcoder vaultgemma bitnet jais2 nanochat"""

_ROWS = (
    # ---- dense, every layer alike
    *(_row(name) for name in _ALIKE.split()),
    _row(
        "gpt2",
        Must(
            "scale_attn_by_inverse_layer_idx",
            (False,),
            "a layer's scores are divided by its index, which a chop changes",
        ),
        stems=BLOCKS,
        count_keys=("n_layer", "num_hidden_layers"),
    ),
    _row("opt", stems=("model.decoder.layers.", "decoder.layers.", "layers.")),
    _row("gpt_neox", stems=("gpt_neox.layers.", "layers.")),
    _row("gptj", stems=BLOCKS, count_keys=("n_layer", "num_hidden_layers")),
    _row("codegen", stems=BLOCKS, count_keys=("n_layer", "num_hidden_layers")),
    _row("gpt_bigcode", stems=BLOCKS, count_keys=("n_layer", "num_hidden_layers")),
    _row("falcon", stems=BLOCKS, count_keys=("num_hidden_layers", "n_layer")),
    _row("bloom", stems=BLOCKS, count_keys=("n_layer", "num_hidden_layers")),
    _row(
        "mpt",
        stems=("transformer.blocks.", "blocks."),
        count_keys=("n_layers", "num_hidden_layers"),
    ),
    _row(
        "gpt_neo",
        Repeated(),
        stems=BLOCKS,
        count_keys=("num_layers", "num_hidden_layers"),
    ),
    _row("xglm", count_keys=("num_layers", "num_hidden_layers")),
    # ---- dense, local and global layers, or layers without RoPE
    _row("qwen2", WINDOWS_FROM),
    _row("qwen3", WINDOWS_FROM),
    _row("gemma2", always(2)),
    _row("gemma3_text", every("sliding_window_pattern", 6)),
    _row("cohere2", every("sliding_window_pattern", 4)),
    _row("olmo3", always(4)),
    _row("exaone4", every("sliding_window_pattern", 4)),
    _row("cwm", always(4, place=0)),
    _row(
        "smollm3",
        TURNS,
        Spelled("layer_types", _smollm3, "the layers without RoPE slide, where use_sliding_window"),
    ),
    # ---- mixtures of experts, every layer alike
    _row("mixtral"),
    _row("olmoe"),
    _row("flex_olmo", why=MOE, near="olmoe"),
    _row("phimoe", why=MOE, near="mixtral"),
    _row("granitemoe", why=MOE, near="granite"),
    _row("granitemoeshared", why=MOE, near="granite"),
    _row("minimax_m2", why=MOE, near="qwen3"),
    # ---- mixtures of experts, layers of several kinds
    _row("gpt_oss", always(2), why=MOE),
    _row(
        "qwen2_moe",
        STEPS,
        Spelled("layer_types", _qwen2_moe, "even i slide"),
        why=MOE,
        near="qwen2",
    ),
    _row("qwen3_moe", STEPS),
    _dense_then_sparse("deepseek_v2", 0, why=MLA),
    _dense_then_sparse("deepseek_v3", 3, 1, why=MLA),
    _dense_then_sparse("glm4_moe", 1, 1, near="glm4"),
    _row(
        "glm4_moe_lite",
        Spelled("mlp_layer_types", _first_dense, "the first is dense"),
        behind=("num_nextn_predict_layers", 1),
        why=MLA,
    ),
    _row(
        "dots1",
        FirstLayers("first_k_dense_replace"),
        Spelled("layer_types", _from_index(None, 62), "full below max_window_layers (62)"),
        why=MOE,
    ),
    _row("ernie4_5_moe", FromToStep(), why=MOE, near="ernie4_5"),
    _row(
        "hunyuan_v1_moe",
        *(
            Listed(key, or_one=True)
            for key in ("num_experts", "moe_topk", "moe_intermediate_size", "num_shared_expert")
        ),
        Must("use_cla", (False,), "layers share keys and values by index"),
        why=MOE,
        near="hunyuan_v1_dense",
    ),
    _row(
        "llama4_text",
        TURNS,
        Indices("moe_layers", _llama4_sparse, "every interleave_moe_layer_step-th (1)"),
        Spelled("layer_types", _llama4, "the layers with RoPE are chunked"),
        why=MOE,
    ),
    _row(
        "mimo_v2_flash",
        Spelled("layer_types", _mimo, "full where i = 0 or (i+1) % 6 = 0"),
        Spelled("mlp_layer_types", _first_dense, "the first is dense"),
        Listed("hybrid_layer_pattern", or_one=True),
        Listed("moe_layer_freq", or_one=True),
        why=MOE,
    ),
    # ---- keys shared between layers, and inputs of all layers in one table
    _row(
        "gemma3n_text",
        FIVES,
        SharedKeys(FIVES, 15),
        Listed("intermediate_size", or_one=True),
        Spelled("activation_sparsity_pattern", _gemma3n_sparsity, "0.95 in the first 10, else 0"),
        packed=PER_LAYER_INPUTS,
        why=SHARING,
        near="gemma3_text",
    ),
    _row(
        "gemma4_text",
        SIXES,
        SharedKeys(SIXES, 0),
        EndsWith(SIXES, FULL),
        packed=PER_LAYER_INPUTS,
        why=SHARING,
        near="gemma3_text",
    ),
    # ---- hybrids
    _row("qwen3_next", STEPS, INTERVALS, why=HYBRID, near="qwen3"),
    _row("qwen3_5_text", INTERVALS, why=HYBRID, near="qwen3"),
    _row("qwen3_5_moe_text", INTERVALS, why=HYBRID, near="qwen3"),
    _row(
        "olmo_hybrid",
        FOURS,
        Holds(FOURS, FULL),
        why=HYBRID,
        near="olmo3",
    ),
    _row(
        "jamba",
        PeriodAndOffset("attn_layer_period", "attn_layer_offset", (8, 4)),
        PeriodAndOffset("expert_layer_period", "expert_layer_offset", (2, 1), idle="num_experts"),
        why=HYBRID,
    ),
    _row("bamba", Indices("attn_layer_indices"), why=HYBRID),
    _row("granitemoehybrid", why=HYBRID, near="granite"),
    _row("lfm2", Indices("full_attn_idxs"), why=HYBRID),
    _row("falcon_h1", why=HYBRID),
    _row("mamba", stems=("backbone.layers.",), why=HYBRID),
    _row("mamba2", stems=("backbone.layers.",), why=HYBRID),
    _row("falcon_mamba", stems=("backbone.layers.",), why=HYBRID),
    _row(
        "nemotron_h",
        Letters("hybrid_override_pattern"),
        stems=("backbone.layers.", "model.layers."),
        counted_by=("layers_block_type", "layer_types", "hybrid_override_pattern"),
        why=HYBRID,
        near="nemotron",
    ),
)
ROWS: dict[str, Structure] = {row.model_type: row for row in _ROWS}

# What cannot be cut by moving bytes, and why.
REFUSED: dict[str, str] = {
    "minicpm3": "every residual is scaled by scale_depth / √(number of layers), which a chop "
    "changes",
    "minimax": "the decay of its linear attention depends on a layer's index and on their number",
    "diffllama": "a constant in its attention depends on a layer's index",
    "zamba": "its attention blocks are shared between layers",
    "zamba2": "its attention blocks are shared between layers",
    "longcat_flash": "its layers are pairs whose caches are numbered by twice their index",
    "mllama": "its cross-attention layers are fed from a table of indices",
}


# ----------------------------------------------------------- language models inside other models


@dataclasses.dataclass(frozen=True)
class Wrapper:
    """A model that holds a decoder beside other parts, which come along byte for byte.

    text: the decoder's model_type where config.json leaves it out. inside: the keys of its part of
    config.json; an older file may have it at the top.
    """

    text: str
    inside: tuple[str, ...] = ("text_config",)
    notes: tuple[str, ...] = ()


_DEEPSTACK = "pictures enter behind the first layers, whichever those are after the chop"
WRAPPERS: dict[str, Wrapper] = {
    "gemma3": Wrapper("gemma3_text"),
    "gemma3n": Wrapper("gemma3n_text"),
    "gemma4": Wrapper("gemma4_text"),
    "paligemma": Wrapper("gemma"),
    "mistral3": Wrapper("mistral"),
    "llava": Wrapper("llama"),
    "llava_next": Wrapper("llama"),
    "llava_next_video": Wrapper("llama"),
    "llava_onevision": Wrapper("qwen2"),
    "vipllava": Wrapper("llama"),
    "video_llava": Wrapper("llama"),
    "aya_vision": Wrapper("cohere2"),
    "cohere2_vision": Wrapper("cohere2"),
    "got_ocr2": Wrapper("qwen2"),
    "internvl": Wrapper("qwen2"),
    "idefics3": Wrapper("llama"),
    "smolvlm": Wrapper("llama"),
    "qwen2_vl": Wrapper("qwen2"),
    "qwen2_5_vl": Wrapper("qwen2"),
    "qwen3_vl": Wrapper("qwen3", notes=(_DEEPSTACK,)),
    "qwen3_vl_moe": Wrapper("qwen3_moe", notes=(_DEEPSTACK,)),
    "qwen3_5": Wrapper("qwen3_5_text"),
    "qwen3_5_moe": Wrapper("qwen3_5_moe_text"),
    "llama4": Wrapper("llama4_text"),
}
# What transformers, in its versions, puts before a language model's names.
_INSIDE = (
    "model.language_model.",
    "language_model.model.",
    "language_model.",
    "model.text_model.",
    "model.language_model.model.",
    "text_model.model.",
    "text_model.",
    "model.",
    "",
)
# Parts of a wrapper call themselves so, and are a row's kind.
_SAME = {
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
    "idefics3_text": "llama",
}


def find(raw: Mapping[str, Any]) -> Structure | None:
    """The row that a config.json belongs to, None where there is none."""
    model_type = raw.get("model_type")
    if not isinstance(model_type, str):
        return None
    wrapper = WRAPPERS.get(model_type)
    return ROWS.get(model_type) if wrapper is None else _wrapped(model_type, wrapper, raw)


def of_family(family: Family) -> Structure:
    """The row of a family that chopjax computes with; where it has none, what the family's weight
    table says."""
    row = ROWS.get(family.model_type)
    stem = next(row.source for row in family.rows if row.per_layer).split("{l}")[0]
    stems = tuple(stem.replace("{p}", prefix) for prefix in family.prefixes)
    if row is None:
        return Structure(family.model_type, stems, count_keys=(family.num_layers_key,))
    return dataclasses.replace(row, stems=tuple(dict.fromkeys((*stems, *row.stems))))


def _wrapped(model_type: str, wrapper: Wrapper, raw: Mapping[str, Any]) -> Structure | None:
    """The decoder's row, with its place in the wrapper."""
    part: Any = raw
    for key in wrapper.inside:
        part = part.get(key) if isinstance(part, dict) else None
    flat = part is None and any(key in raw for key in ("num_hidden_layers", "layer_types"))
    name = part.get("model_type") if isinstance(part, dict) else None
    name = wrapper.text if name is None or flat else name
    row = ROWS.get(_SAME.get(name, name)) if isinstance(name, str) else None
    if row is None:
        return None
    base = row.stems[-1]
    return dataclasses.replace(
        row,
        model_type=model_type,
        stems=tuple(prefix + base for prefix in _INSIDE),
        inside=() if flat else wrapper.inside,
        why=TOWER,
        near=name,
        notes=wrapper.notes,
    )
