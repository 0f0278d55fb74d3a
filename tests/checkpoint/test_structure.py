"""Where layers stand in names and in config.json."""

from __future__ import annotations

from typing import Any

import pytest

from chopjax.checkpoint.structure import (
    count_layers,
    follow,
    kept_name,
    kinds,
    period,
    stated_layers,
)
from chopjax.checkpoint.structures import ROWS, find
from chopjax.errors import UserError
from chopjax.models.families import FAMILIES

LLAMA = ROWS["llama"]


def names(layers: Any, stem: str = "model.layers.") -> list[str]:
    return [f"{stem}{layer}.mlp.up_proj.weight" for layer in layers] + ["lm_head.weight"]


def test_names_of_layers() -> None:
    assert LLAMA.layer_index("model.layers.12.a.3.b") == (12, "model.layers.{l}.a.3.b")
    assert LLAMA.layer_index("layers.0") == (0, "layers.{l}")
    for other in ("model.layers.01.a", "model.layers.x.a", "a.layers.1.b", "model.layers.1x.b", ""):
        assert LLAMA.layer_index(other) is None
    assert kept_name(LLAMA, "model.layers.5.a", (1, 5), 6) == "model.layers.1.a"
    assert kept_name(LLAMA, "model.layers.4.a", (1, 5), 6) is None
    assert kept_name(LLAMA, "model.layers.6.a", (1, 5), 6) == "model.layers.2.a"
    assert kept_name(LLAMA, "model.norm.weight", (1, 5), 6) == "model.norm.weight"


def test_count() -> None:
    raw = {"model_type": "llama", "num_hidden_layers": 3}
    assert count_layers(LLAMA, raw, names(range(3)), "m") == 3
    assert count_layers(LLAMA, {}, names(range(5)), "m") == 5  # as the files have it
    deepseek = ROWS["deepseek_v3"]
    assert count_layers(deepseek, raw, names(range(3)), "m") == 3
    assert count_layers(deepseek, raw, names(range(4)), "m") == 3
    assert count_layers(deepseek, {}, names(range(4)), "m") == 3  # one of them behind the others
    bloom = {"n_layer": 2, "num_hidden_layers": 2}
    assert count_layers(ROWS["bloom"], bloom, names(range(2), "h."), "m") == 2
    assert follow(ROWS["bloom"], bloom, 2, (1,)) == {"n_layer": 1, "num_hidden_layers": 1}


@pytest.mark.parametrize(
    ("raw", "layers", "message"),
    [
        ({"num_hidden_layers": 3}, (0, 2), r"no tensor of layers 1$"),
        ({"num_hidden_layers": 2}, (0, 1, 2), r"beyond the last layer: model.layers.2.mlp"),
        ({"num_hidden_layers": 2}, (), r"no tensor is named as a layer of model_type llama"),
        ({"num_hidden_layers": "2"}, (0, 1), r"num_hidden_layers is '2'; a whole number"),
        ({"num_hidden_layers": 0}, (0, 1), r"num_hidden_layers is 0; a whole number of at least 1"),
        ({"num_hidden_layers": 10**5}, (0, 1), r"at most 10,000"),
    ],
)
def test_files_and_config_must_agree(raw: Any, layers: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"(?m){message}"):
        count_layers(LLAMA, raw, names(layers), "m")


def test_two_numbers_of_layers() -> None:
    with pytest.raises(UserError, match="two numbers of layers: n_layer 2, num_hidden_layers 3"):
        stated_layers(ROWS["bloom"], {"n_layer": 2, "num_hidden_layers": 3})


def test_config_of_the_kept_layers_inside_a_wrapper() -> None:
    text = {"model_type": "qwen3", "num_hidden_layers": 3, "layer_types": ["a", "b", "c"]}
    raw = {
        "quantization_config": {"ignore": ["model.language_model.layers.2.mlp", "visual.blocks.2"]},
        "model_type": "llava",
        "text_config": text,
        "vision_config": {"num_hidden_layers": 3},
    }
    structure = find(raw)
    assert structure is not None
    assert follow(structure, raw, 3, (0, 2)) == raw | {
        "quantization_config": {"ignore": ["model.language_model.layers.1.mlp", "visual.blocks.2"]},
        "text_config": text | {"num_hidden_layers": 2, "layer_types": ["a", "c"]},
    }
    assert raw["text_config"] is text
    assert text["num_hidden_layers"] == 3
    broken: Any
    for broken in (None, [], "x"):
        with pytest.raises(UserError, match=r"text_config is .*; the language model's own"):
            stated_layers(structure, raw | {"text_config": broken})
    assert find(raw | {"text_config": {"model_type": "unheard"}}) is None


@pytest.mark.parametrize(
    ("letters", "length"),
    [("ssfssfss", 3), ("sfsfsfs", 2), ("aaaa", None), ("abbbbb", None), ("ab", None), ("abab", 2)],
)
def test_period(letters: str, length: int | None) -> None:
    raw = {"layer_types": list(letters)}
    assert period(LLAMA, raw, len(letters)) == length
    assert len(kinds(LLAMA, raw, len(letters))) == len(letters)


def test_rows_say_what_families_say() -> None:
    """One table for both depths."""
    for name, family in FAMILIES.items():
        assert family.num_layers_key == ROWS[name].count_keys[0]
        stem = next(row.source for row in family.rows if row.per_layer).split("{l}")[0]
        assert stem.replace("{p}", family.prefixes[0]) == ROWS[name].stems[0]
