"""Weight tables: inverses of themselves, and strict about what they find."""

from __future__ import annotations

import families
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from chopjax.errors import UserError
from chopjax.models import parameters
from chopjax.models.config import ModelConfig
from chopjax.models.families import FAMILIES, table
from chopjax.models.families.table import bind, layer_index, match, usual_naming

FAMILY_NAMES = sorted(FAMILIES)


def test_every_family_is_in_the_table_that_tests_read() -> None:
    assert families.NAMES == FAMILY_NAMES
    assert sorted(families.SPACE) == FAMILY_NAMES


def tensors_of(name: str, **options: object) -> tuple[table.Family, ModelConfig, dict]:
    family = FAMILIES[name]
    config = family.translate({"model_type": name} | families.SIZES[name] | options)
    size = parameters.sizes(config)
    shapes = {
        b.source: b.row.source_shape(size) for b in bind(family, config, usual_naming(family))
    }
    return family, config, shapes


@given(name=st.sampled_from(FAMILY_NAMES), seed=st.integers(0, 2**32), tied=st.booleans())
def test_to_tensor_undoes_to_parameters(name: str, seed: int, tied: bool) -> None:
    family, config, shapes = tensors_of(name, tie_word_embeddings=tied)
    size = parameters.sizes(config)
    rng = np.random.default_rng(seed)
    for binding in match(family, config, shapes, "here").bindings:
        tensor = rng.integers(0, 2**16, shapes[binding.source], dtype=np.uint16)
        arrays = binding.row.to_parameters(tensor, size)
        for path, array in zip(binding.row.targets, arrays, strict=True):
            expected = parameters.shapes(config)[path]
            assert array.shape == (expected[1:] if binding.row.per_layer else expected)
            assert np.shares_memory(array, tensor), "reading must not copy"
        assert np.array_equal(binding.row.to_tensor(arrays, size), tensor)


@pytest.mark.parametrize("name", FAMILY_NAMES)
@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_is_bound_once(name: str, tied: bool) -> None:
    family, config, shapes = tensors_of(name, tie_word_embeddings=tied)
    bound = [path for b in match(family, config, shapes, "here").bindings for path in b.row.targets]
    expected = {
        path: config.num_layers if path.startswith("blocks/") else 1
        for path in parameters.axes(config)
    }
    assert {path: bound.count(path) for path in bound} == expected


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_all_offenders_are_listed_at_once(name: str) -> None:
    family, config, shapes = tensors_of(name)
    names = list(shapes)
    missing, misshapen = names[1], names[-1]
    del shapes[missing]
    shapes[misshapen] = (*shapes[misshapen], 2)
    shapes["stranger.weight"] = (3,)
    with pytest.raises(UserError) as caught:
        match(family, config, shapes, "some/folder")
    message = str(caught.value)
    for name in (missing, misshapen, "stranger.weight", "some/folder"):
        assert name in message


def test_a_tied_table_may_stand_under_the_heads_name_or_both() -> None:
    family, config, shapes = tensors_of("llama", tie_word_embeddings=True)
    own = "model.embed_tokens.weight"
    both = match(family, config, shapes | {"lm_head.weight": shapes[own]}, "here")
    assert both.duplicates == ((own, "lm_head.weight"),)
    head_only = {"lm_head.weight" if n == own else n: s for n, s in shapes.items()}
    assert match(family, config, head_only, "here").naming.embedding_names == ("lm_head.weight",)


def test_prefixes_and_buffers_of_older_checkpoints() -> None:
    family, config, shapes = tensors_of("gpt2")
    bare = {name.removeprefix("transformer."): shape for name, shape in shapes.items()}
    found = match(family, config, bare | {"h.0.attn.bias": (1, 1, 16, 16)}, "here")
    assert found.naming.prefix == ""
    assert found.buffers == ("h.0.attn.bias",)
    family, config, shapes = tensors_of("llama")
    old = "model.layers.2.self_attn.rotary_emb.inv_freq"
    assert match(family, config, shapes | {old: (1,)}, "here").buffers == (old,)


def test_layer_index() -> None:
    llama, gpt2 = FAMILIES["llama"], FAMILIES["gpt2"]
    assert layer_index(llama, "model.layers.12.mlp.up_proj.weight") == (
        12,
        "model.layers.{l}.mlp.up_proj.weight",
    )
    assert layer_index(gpt2, "h.3.attn.bias") == (3, "h.{l}.attn.bias")
    assert layer_index(llama, "lm_head.weight") is None
    assert layer_index(llama, "model.norm.weight") is None
