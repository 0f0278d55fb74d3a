"""Model types without a row: cut where there is one way to read them, and named where not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chopjax.checkpoint.inferred import check_fields, infer
from chopjax.checkpoint.safetensors_file import TensorInfo
from chopjax.checkpoint.structure import follow
from chopjax.errors import UserError

RAW: dict[str, Any] = {
    "model_type": "supermodel",
    "num_hidden_layers": 4,
    "hidden_size": 8,
    "layer_norm_eps": 1e-5,
    "num_experts_per_tok": 2,
    "eos_token_id": [1, 2, 3, 4],  # four by chance
    "rope_scaling": {"short_factor": [1.0, 1.0, 1.0, 1.0]},
    "moe_layer_freq": 1,
    "num_nextn_predict_layers": 0,
    "use_cache": True,
}


def tensors(names: Any) -> dict[str, TensorInfo]:
    return {name: TensorInfo(name, "F32", (2,), Path("x"), 0, 8) for name in names}


def stack(stem: str, count: int = 4) -> list[str]:
    return [f"{stem}{i}.mlp.experts.{e}.weight" for i in range(count) for e in range(3)]


def inferred(raw: dict[str, Any], names: Any) -> Any:
    structure = infer(raw, tensors(names), "m")
    check_fields(structure, raw, 4)
    return structure


def test_one_way_to_read_it() -> None:
    structure = inferred(RAW, [*stack("transformer.layers."), "lm_head.weight"])
    assert structure.stems == ("transformer.layers.",)
    assert "4 layers, tensors transformer.layers.0.… to" in structure.notes[0]
    assert follow(structure, RAW, 4, (0, 3)) == RAW | {"num_hidden_layers": 2}


def test_a_tower_and_a_text_config() -> None:
    raw = {"model_type": "x", "text_config": RAW, "vision_config": {"num_hidden_layers": 4}}
    structure = inferred(raw, [*stack("lm.layers."), *stack("vision_tower.layers.")])
    assert structure.stems == ("lm.layers.",)
    assert follow(structure, raw, 4, (1,))["text_config"] == RAW | {"num_hidden_layers": 1}


@pytest.mark.parametrize(
    "more",
    [
        {"layer_types": ["a", "b", "a", "b"], "sliding_window": 8, "sliding_window_pattern": 2},
        {"sliding_window": 8, "use_sliding_window": False},
        {"mlp_only_layers": [1], "decoder_sparse_step": 1},
        {"num_kv_shared_layers": 0, "moe_layers": None, "hybrid_pattern": ""},
        {"depth_mult": 0, "block_size": 64, "layer_norm_type": "rms"},
        {"num_local_experts": 8, "moe_intermediate_size": 64, "topk_group": 2, "n_group": 4},
    ],
)
def test_fields_that_are_understood(more: dict[str, Any]) -> None:
    inferred(RAW | more, stack("layers."))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"my_kinds": [0, 0, 0, 1]}, "my_kinds: a list of 4 entries"),
        ({"attn_every": 3}, "attn_every = 3"),
        ({"moe_layer_freq": 2}, "moe_layer_freq = 2"),
        ({"first_k_dense_replace": 1}, "first_k_dense_replace = 1"),
        ({"num_kv_shared_layers": 2}, "num_kv_shared_layers = 2"),
        ({"scale_depth": 1.4}, "scale_depth = 1.4"),
        ({"sliding_window": 4096}, "sliding_window = 4096, and no layer_types says"),
        ({"hybrid_override_pattern": "M*M*"}, "hybrid_override_pattern = 'M"),
        ({"overrides": {"0": {}, "3": {}}}, "overrides = .*with indices for keys"),
        ({"attn": {"global_layer_period": 5}}, r"attn = .* \(global_layer_period\)"),
        ({"scale_by_layer_idx": True}, "scale_by_layer_idx = True"),
        ({"global_attn_idx": [0, 3]}, "global_attn_idx"),
        ({"kv_reuse": [[1, 2]]}, "kv_reuse"),
        ({"whatever": [0, 2]}, "a list of whole numbers, which may be layers"),
        ({"rope_layers": [0, 2]}, "rope_layers"),
        ({"rope_thetas": [1e4, 1e6, 1e4, 1e6]}, "rope_thetas: a list of 4 entries"),
        ({"moe_start": 2}, "moe_start = 2"),
    ],
)
def test_fields_that_stop_it(more: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        inferred(RAW | more, stack("layers."))


@pytest.mark.parametrize(
    ("raw", "names", "message"),
    [
        (RAW, [], "no tensor has an index in its name"),
        (RAW, stack("layers.", 3), r"layers.N: 3 of 0 to 2"),
        (RAW, [*stack("a.layers."), *stack("b.layers.")], "exactly one stack"),
        (RAW, [*stack("a.layers."), *stack("b.layers.", 2)], "exactly one stack"),
        ({"model_type": "x"}, stack("layers."), "number of layers is not clear: nothing"),
        (RAW | {"n_layer": 5}, stack("layers."), "num_hidden_layers 4, n_layer 5"),
        (RAW | {"num_hidden_layers": "4"}, stack("layers."), "num_hidden_layers '4'"),
        ({"model_type": ["x"], "num_hidden_layers": -1}, stack("layers."), "not clear"),
        (RAW, [*stack("layers."), "layers.2.mamba.weight"], "layers 0 and 2 have different"),
    ],
)
def test_structures_that_are_not_clear(raw: Any, names: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        inferred(raw, names)


def test_a_part_for_every_layer_outside_of_them() -> None:
    found = tensors(stack("layers."))
    found["gates.weight"] = TensorInfo("gates.weight", "F32", (4, 8), Path("x"), 0, 128)
    with pytest.raises(UserError, match=r"gates.weight \[4, 8\]"):
        infer(RAW, found, "m")


def test_layers_may_differ_where_a_field_says_so() -> None:
    raw = RAW | {"layer_types": ["full", "full", "mamba", "full"]}
    inferred(raw, [*stack("layers."), "layers.2.mamba.weight"])
