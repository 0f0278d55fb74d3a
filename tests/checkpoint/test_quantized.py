"""Names in a quantization_config: renumbered, gone with their layer, or left alone."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chopjax.checkpoint.quantized import follow_names
from chopjax.checkpoint.structure import Structure, new_index
from chopjax.errors import UserError

KEEP = (0, 2, 11)
LAYERS = 12
STRUCTURE = Structure("llama", ("model.layers.", "layers."))
TENSORS = [
    f"model.layers.{layer}.{module}.weight"
    for layer in range(LAYERS)
    for module in ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm")
] + ["lm_head.weight", "vision.encoder.layers.1.mlp.up_proj.weight", "model.norm.weight"]
MODULES = st.sampled_from(TENSORS).map(lambda name: name.rsplit(".", 1)[0])


def followed(config: Any) -> Any:
    return follow_names(
        config, STRUCTURE.layer_index, lambda layer: new_index(layer, KEEP, LAYERS), TENSORS
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (["lm_head"], ["lm_head"]),
        (["model.layers.2.mlp.up_proj", "model.layers.3.mlp"], ["model.layers.1.mlp.up_proj"]),
        (["layers.11.mlp"], ["layers.2.mlp"]),
        (["model.layers.11"], ["model.layers.2"]),
        (["model.layers.12.eh_proj"], ["model.layers.3.eh_proj"]),  # behind the last layer
        (["vision.encoder.layers.1.mlp"], ["vision.encoder.layers.1.mlp"]),
        (["gate", "q_proj", "Linear"], ["gate", "q_proj", "Linear"]),
        # Patterns that mean the same of every layer.
        (["re:.*down_proj$", "model.layers.*.self_attn", "*.mlp*"],) * 2,
        (["re:model\\.layers\\.\\d+\\.mlp.*"],) * 2,
        (["re:.*layers\\.99\\.mlp", "re:(", "re:(a+)+$", "*" * 2000],) * 2,
        # Patterns that tell layers apart are spelled out.
        (["re:model.*layers\\.(1|2)\\.mlp$"], ["re:model\\.layers\\.1\\.mlp(\\..*)?$"]),
        (["model.layers.2*"], ["model.layers.1", "model.layers.1.*"]),
        (["model.layers.1*"], ["model.layers.2", "model.layers.2.*"]),  # 1, 10 and 11
        (
            ["model.layers.11.mlp.*_proj"],
            ["model.layers.2.mlp.down_proj", "model.layers.2.mlp.up_proj"],
        ),
    ],
)  # fmt: skip
def test_lists_of_names(before: list[str], after: list[str]) -> None:
    assert followed({"ignore": before}) == {"ignore": after}


@pytest.mark.parametrize(
    "pattern", ["re:(", "re:(x+)+1$", "re:(x|x)*1", "re:.*.*.*.*.*1", "-:" + "1" * 2000]
)
def test_patterns_that_cannot_be_followed(pattern: str) -> None:
    if not re.search("[0-9]", pattern):
        assert followed({"ignore": [pattern]}) == {"ignore": [pattern]}
        return
    with pytest.raises(UserError, match="write the names of the modules in its place"):
        followed({"ignore": [pattern]})


def test_keys_and_what_is_deeper() -> None:
    before = {
        "quant_method": "gptq",
        "bits": 4,
        "modules_to_not_convert": None,
        "config_groups": {"group_0": {"targets": ["model.layers.2.mlp", "Linear"], "n": 1.5}},
        "dynamic": {"-:.*layers\\.2\\.mlp.*": {}, "+:.*up_proj": {"bits": 8}},
        "extra_config": {"model.layers.3.mlp": {"bits": 16}, "model.layers.0.mlp": {"bits": 8}},
        "modules_in_block_to_quantize": [["self_attn.q_proj"], ["mlp.up_proj"]],
    }
    assert followed(before) == before | {
        "config_groups": {"group_0": {"targets": ["model.layers.1.mlp", "Linear"], "n": 1.5}},
        "dynamic": {"-:model\\.layers\\.1\\.mlp(\\..*)?$": {}, "+:.*up_proj": {"bits": 8}},
        "extra_config": {"model.layers.0.mlp": {"bits": 8}},
    }


@given(st.lists(MODULES, unique=True, max_size=20))  # all of them: longer than MAX_PATTERN
def test_a_regex_means_the_same_modules_of_the_kept_layers(named: list[str]) -> None:
    """Whatever a regex meant of the kept layers, what it becomes means of them still."""
    pattern = "|".join(map(re.escape, named)) or "none"
    modules = [name.rsplit(".", 1)[0] for name in TENSORS]
    kept = {}
    for module in modules:
        place = STRUCTURE.layer_index(module)
        index = new_index(place[0], KEEP, LAYERS) if place else 0
        if index is not None:
            kept[module] = place[1].replace("{l}", str(index)) if place else module
    regexes = [entry.removeprefix("re:") for entry in followed({"i": [f"re:({pattern})$"]})["i"]]
    for old, new in kept.items():
        assert bool(re.match(f"({pattern})$", old)) == any(re.match(r, new) for r in regexes)
