"""Narrower checkpoints of every family, beside the parent with what went at zero."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import checkpoints
import families
import numpy as np
import pytest
import torch
import transformers

from chopjax.checkpoint.changed import write_changed
from chopjax.checkpoint.open import open_checkpoint
from chopjax.errors import UserError
from chopjax.models import parameters
from chopjax.models.families import FAMILIES
from chopjax.narrow.slices import Stayed, narrowed_tensors, places
from chopjax.narrow.units import Plan, make_plan, shares_that_work, units

# Families whose config.json has no width of the feed-forward, or whose layers have experts.
NO_MLP = {"bloom", "mpt", "mixtral", "olmoe", "qwen3_moe"}
# Those whose heads are as large as the model's width says.
NO_HEADS = {"bloom", "mpt", "gpt2", "gptj", "gpt_neo", "gpt_neox", "opt", "falcon", "stablelm"}
NO_HEADS |= {"cohere2", "helium", "olmoe"}
# Where the embeddings' scale follows from the width.
NO_EMBED = NO_HEADS | {"gemma", "gemma2", "gemma3_text"}
# A norm over the queries of all heads is another one over fewer.
ONE_NORM = {"olmo2", "olmo3"}


def logits(model: Any) -> torch.Tensor:
    tokens = torch.arange(2 * 17).reshape(2, 17) % 97
    with torch.no_grad():
        found: torch.Tensor = model.eval()(tokens, use_cache=False).logits
    return found


def loaded(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")


def silence(model: Any, checkpoint: Any, stayed: list[Stayed]) -> None:
    """Zeros in the matrices that read what went."""
    weights = dict(model.named_parameters())
    readers = {"blocks/mlp/down": "F", "blocks/attention/output": "N"}
    for binding in checkpoint.match.bindings:
        if binding.row.target not in readers:
            continue
        letter = readers[binding.row.target]
        here = places(checkpoint.config, stayed[binding.layer])
        if letter in here:
            tensor = weights[binding.source].detach().numpy()
            size = parameters.sizes(checkpoint.config)
            (kernel,) = binding.row.to_parameters(tensor, size)
            gone = np.setdiff1d(np.arange(len(kernel)), here[letter])
            kernel[gone] = 0
            assert (tensor == 0).any(), "a view of the model's own memory"


def write(out: Path, checkpoint: Any, plan: Plan, stayed: list[Stayed]) -> None:
    tensors = narrowed_tensors(checkpoint, plan.config, stayed)
    out.mkdir()
    write_changed(out, checkpoint, plan.raw_config, tensors, 10**9, lambda nbytes: None)
    assert open_checkpoint(str(out)).config == plan.config


@pytest.mark.parametrize("family", families.NAMES)
def test_dimensions_go_wherever_transformers_has_the_width(family: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(checkpoints.write_checkpoint(tmp_path / "p", family)))
    raw, config = checkpoint.raw_config, checkpoint.config
    works = shares_that_work(checkpoint.family, raw, config, "embed")
    assert bool(works) == (family not in NO_EMBED)
    if not works:
        with pytest.raises(UserError, match="--embed: "):
            make_plan(checkpoint.family, raw, config, {"embed": 0.25})
        return
    plan = make_plan(checkpoint.family, raw, config, {"embed": 0.5})
    assert plan.config.embed_dim == 16
    kept = np.sort(np.random.default_rng(0).permutation(32)[:16])
    write(tmp_path / "o", checkpoint, plan, [{"embed": kept}] * config.num_layers)
    made = open_checkpoint(str(tmp_path / "o"))
    assert torch.isfinite(logits(loaded(tmp_path / "o"))).all(), "its shapes are transformers'"
    for name in checkpoint.tensors:
        expected, found = checkpoint.array(name), made.array(name)
        for axis, (before, after) in enumerate(zip(expected.shape, found.shape, strict=True)):
            if before != after:
                expected = np.take(expected, kept, axis)
        assert expected.tobytes() == found.tobytes(), name


@pytest.mark.parametrize("family", families.NAMES)
def test_logits_are_the_parents_without_what_went(family: str, tmp_path: Path) -> None:
    parent = checkpoints.write_checkpoint(tmp_path / "p", family)
    checkpoint = open_checkpoint(str(parent))
    config, shares = checkpoint.config, {}
    for kind, refused in (("mlp", NO_MLP), ("heads", NO_HEADS)):
        works = shares_that_work(checkpoint.family, checkpoint.raw_config, config, kind)
        assert bool(works) == (family not in refused)
        if works:
            shares[kind] = works[0]
            continue
        with pytest.raises(UserError, match=f"--{kind}"):
            make_plan(checkpoint.family, checkpoint.raw_config, config, {kind: 0.5})
    if not shares:
        return
    plan = make_plan(checkpoint.family, checkpoint.raw_config, config, shares)
    draw = np.random.default_rng(0)
    stayed: list[Stayed] = [
        {k: np.sort(draw.permutation(units(config)[k])[:n]) for k, n in plan.kept.items()}
        for _ in config.layers
    ]
    write(tmp_path / "o", checkpoint, plan, stayed)
    narrow, whole = loaded(tmp_path / "o"), loaded(parent)
    silence(whole, checkpoint, stayed)
    off = (logits(narrow) - logits(whole)).abs().max()
    if family in ONE_NORM:
        assert torch.isfinite(off)
    else:
        assert off < 1e-5


@pytest.mark.parametrize("family", sorted(set(families.NAMES) - NO_HEADS))
def test_whether_heads_must_divide_the_width_is_as_transformers_has_it(family: str) -> None:
    sizes = families.SIZES[family] | {"num_key_value_heads": 3, "head_dim": 8}
    sizes |= {"num_attention_heads": 3}  # of a width of 32

    def build() -> None:
        config = transformers.AutoConfig.for_model(family, **sizes)
        with torch.device("meta"):
            transformers.AutoModelForCausalLM.from_config(config)

    if FAMILIES[family].heads_divide_width:
        with pytest.raises(Exception, match="not a multiple of the number of attention heads"):
            build()
    else:
        build()
