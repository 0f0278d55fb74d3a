"""Every row of the chop registry beside transformers: chopped files against deleted layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from chop_models import BY_HAND, KEEP, KEEPS, LAYERS, SIZES, WRAPPED, write_model

from chopjax.checkpoint.layer_fields import (
    Indices,
    Spelled,
)
from chopjax.checkpoint.open import open_to_chop
from chopjax.checkpoint.source import Checkpoint
from chopjax.checkpoint.structure import text_config
from chopjax.checkpoint.structures import REFUSED, ROWS, WRAPPERS, find
from chopjax.chop.stream import chop_checkpoint
from chopjax.models.families import FAMILIES

STACKS = ("layers", "h", "blocks")
LISTS = ("layer_types", "mlp_layer_types", "layers_block_type", "no_rope_layers")


def test_every_row_is_tested():
    assert set(SIZES) == set(ROWS)
    assert set(WRAPPERS) - set(WRAPPED) == {"gemma3n"}  # whose tower needs timm
    assert set(FAMILIES) <= set(ROWS)
    assert not set(REFUSED) & {*ROWS, *WRAPPERS}


def delete(model: Any, keep: tuple[int, ...], model_type: str) -> Any:
    """What people do to a model of transformers: the list of modules, their indices, and what its
    config says of each layer."""
    [(owner, name)] = [
        (owner, name)
        for path, owner in model.named_modules()
        for name, stack in owner.named_children()
        if name in STACKS and isinstance(stack, torch.nn.ModuleList) and len(stack) == LAYERS
        if model_type not in WRAPPED or "language_model" in path or "text_model" in path
        if "vision" not in path
    ]
    kept = [getattr(owner, name)[layer] for layer in keep]
    setattr(owner, name, torch.nn.ModuleList(kept))
    for index, block in enumerate(kept):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index
    if hasattr(owner, "embed_tokens_per_layer"):  # Gemma 3n and 4: a part a layer
        for table, axis in (
            (owner.embed_tokens_per_layer, 1),
            (owner.per_layer_model_projection, 0),
        ):
            parts = table.weight.data.chunk(LAYERS, axis)
            table.weight.data = torch.cat([parts[layer] for layer in keep], axis)
    config = model.config.get_text_config()
    for key in LISTS:
        stated = config.__dict__.get(key)
        if isinstance(stated, list) and len(stated) == LAYERS:
            setattr(config, key, [stated[layer] for layer in keep])
    for key, value in BY_HAND.get(model_type, {}).items():
        setattr(config, key, value)
    config.num_hidden_layers = len(keep)
    return model


def assert_equal_to_deletion(
    folder: Path, out: Path, model: Any, model_type: str, keep: tuple[int, ...]
) -> None:
    """Chop the folder: transformers loads what comes without a missing or unexpected tensor, and
    computes what the model without those layers does. Texts are longer than every window."""
    files = open_to_chop(str(folder))
    chop_checkpoint(files, keep, out, "keep", {})
    auto: Any = transformers.AutoModelForCausalLM
    if model_type in WRAPPED:
        auto = transformers.AutoModelForImageTextToText
    loaded, info = auto.from_pretrained(out, attn_implementation="eager", output_loading_info=True)
    assert not any(info.values()), info
    tokens = torch.randint(1, 60, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = loaded.eval()(tokens, use_cache=False).logits
        expected = delete(model, keep, model_type)(tokens, use_cache=False).logits
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("model_type", [*SIZES, *WRAPPED])
def test_chop_equals_deletion(model_type, tmp_path):
    model = write_model(tmp_path / "parent", model_type)
    keep = KEEPS.get(model_type, KEEP)
    assert_equal_to_deletion(tmp_path / "parent", tmp_path / "out", model, model_type, keep)


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("stablelm", {"qk_layernorm": True}),
        ("falcon", {"alibi": True, "new_decoder_architecture": False}),
    ],
)
def test_options_that_chopjax_does_not_compute(model_type, options, tmp_path):
    model = write_model(tmp_path / "parent", model_type, **options)
    files = open_to_chop(str(tmp_path / "parent"))
    assert not isinstance(files, Checkpoint)
    assert "asks for what chopjax cannot do" in files.why
    assert_equal_to_deletion(tmp_path / "parent", tmp_path / "out", model, model_type, KEEP)


def spelled(model_type: str) -> list[Spelled]:
    return [field for field in ROWS[model_type].fields if isinstance(field, Spelled)]


def left_to_patterns(model_type: str) -> list[str]:
    """The lists that transformers infers where a config.json leaves them out."""
    return [
        field.key
        for field in ROWS[model_type].fields
        if isinstance(field, Spelled) or (isinstance(field, Indices) and field.starting)
        if field.key not in SIZES[model_type]
    ]


@pytest.mark.parametrize("model_type", [name for name in SIZES if left_to_patterns(name)])
def test_lists_that_the_file_leaves_out(model_type, tmp_path):
    """As files were before transformers wrote the lists: most that are published."""
    model = write_model(tmp_path / "parent", model_type)
    path = tmp_path / "parent" / "config.json"
    raw = json.loads(path.read_text())
    for key in left_to_patterns(model_type):
        del raw[key]
    path.write_text(json.dumps(raw))
    assert_equal_to_deletion(tmp_path / "parent", tmp_path / "out", model, model_type, KEEP)


@pytest.mark.parametrize("model_type", [name for name in ROWS if spelled(name)])
@pytest.mark.parametrize("num_layers", [3, 14])
def test_patterns_are_those_of_transformers(model_type, num_layers):
    sizes = {key: value for key, value in SIZES[model_type].items() if not isinstance(value, list)}
    sizes |= {"num_hidden_layers": num_layers, "num_kv_shared_layers": 0}
    config = transformers.AutoConfig.for_model(model_type, **sizes)
    for field in spelled(model_type):
        assert field.pattern(sizes, num_layers) == getattr(config, field.key)


@pytest.mark.parametrize("model_type", WRAPPED)
def test_what_stands_beside_the_decoder_comes_along(model_type, tmp_path):
    write_model(tmp_path / "parent", model_type)
    files = open_to_chop(str(tmp_path / "parent"))
    chop_checkpoint(files, (1, 4), tmp_path / "out", "keep", {})
    before, after = (
        safetensors.torch.load_file(tmp_path / name / "model.safetensors")
        for name in ("parent", "out")
    )
    others = [
        name
        for name in before
        if files.structure.layer_index(name) is None and files.structure.packed_axis(name) is None
    ]
    assert any("vis" in name or "tower" in name for name in others)
    assert all(torch.equal(before[name], after[name]) for name in others)
    parent = json.loads((tmp_path / "parent" / "config.json").read_text())
    child = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {key for key in parent if parent[key] != child[key]} == {"text_config"}


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl"])
def test_an_older_file_has_the_decoder_at_the_top(name):
    raw = {"model_type": name, "num_hidden_layers": 4, "vision_config": {"depth": 2}}
    structure = find(raw)
    assert structure is not None
    assert text_config(structure, raw) == raw
    assert structure.layer_index("model.layers.3.mlp.up_proj.weight") == (
        3,
        "model.layers.{l}.mlp.up_proj.weight",
    )
    assert structure.layer_index("visual.blocks.3.mlp.fc1.weight") is None


def test_layers_of_multi_token_prediction_stay_behind(tmp_path):
    """deepseek_v3's files hold layer L, which no config counts."""
    write_model(tmp_path / "parent", "deepseek_v3")
    path = tmp_path / "parent" / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    last = f"model.layers.{LAYERS}.eh_proj.weight"
    tensors[last] = torch.arange(6.0)
    safetensors.torch.save_file(tensors, path, {"format": "pt"})
    files = open_to_chop(str(tmp_path / "parent"))
    assert files.num_layers == LAYERS
    chop_checkpoint(files, KEEP, tmp_path / "out", "keep", {})
    after = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(after[f"model.layers.{len(KEEP)}.eh_proj.weight"], tensors[last])
    assert open_to_chop(str(tmp_path / "out")).num_layers == len(KEEP)
