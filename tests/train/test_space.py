"""What runs will write, by hand and by doing what saving does."""

from __future__ import annotations

import dataclasses
import shutil
from collections import namedtuple
from pathlib import Path

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chopjax.errors import UserError
from chopjax.models import families, mesh, parameters
from chopjax.models.adapter_settings import AdapterSettings
from chopjax.train import space, step
from chopjax.train.dimchop_settings import DimChopSettings
from chopjax.train.optimizer import make_optimizer
from chopjax.train.settings import (
    CheckpointSettings,
    ComputeSettings,
    OptimizerSettings,
    Settings,
)

CONFIG = families.translate(
    {"model_type": "llama", "vocab_size": 50, "hidden_size": 16, "intermediate_size": 24}
    | {"num_hidden_layers": 4, "num_attention_heads": 2, "max_position_embeddings": 32}
)[1]
Usage = namedtuple("Usage", "total used free")


def settings(total: int = 10, every: int = 5, keep_last: int = 2, keep_every: int = 0) -> Settings:
    return Settings(total_steps=total, checkpoints=CheckpointSettings(every, keep_last, keep_every))


def most_at_once(total: int, every: int, keep_last: int, keep_every: int, step: int, there: int):
    """By doing what Saver does."""
    old, new, most = [-1] * there, [], there
    for s in range(step + 1, total + 1):
        if s % every and s != total:
            continue
        new.append(s)
        most = max(most, len(old) + len(new))
        everything = old + new
        stay = everything[-keep_last:]
        gone = [s for s in everything if s not in stay and not (keep_every and s % keep_every == 0)]
        old = [s for s in old if s not in gone]
        new = [s for s in new if s not in gone]
    return most - there


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 4), st.integers(0, 20), st.data())
def test_never_fewer_than_there_will_be(total, every, keep_last, keep_every, data) -> None:
    said = space.checkpoints_at_once(settings(total, every, keep_last, keep_every))
    exact = most_at_once(total, every, keep_last, keep_every, 0, 0)
    assert exact <= said <= exact + 1  # a multiple of keep_every may be among the newest, too


def test_bytes_are_parameters_and_moments() -> None:
    count = parameters.count(CONFIG)
    assert space.checkpoint_bytes(CONFIG, settings()) == 2 * 4 * count
    adamw = dataclasses.replace(
        settings(), optimizer=OptimizerSettings(name="adamw", momentum_dtype="bfloat16")
    )
    assert space.checkpoint_bytes(CONFIG, adamw) == (4 + 2 + 4) * count
    assert space.checkpoint_bytes(CONFIG, adamw, beside=7) == (4 + 2 + 4) * (count + 7)


def test_bytes_of_adapters_are_theirs_alone() -> None:
    """Float32 whatever the base is in: on gate, up and down of four layers, rank 2."""
    adapted = dataclasses.replace(
        settings(),
        model="base",
        adapter=AdapterSettings(rank=2, base="nf4"),
        compute=ComputeSettings(param_dtype="bfloat16"),
        optimizer=OptimizerSettings(name="adamw"),
    )
    count = 4 * 3 * 2 * (16 + 24)
    assert space.checkpoint_bytes(CONFIG, adapted) == 3 * 4 * count
    assert space.checkpoint_bytes(CONFIG, adapted, beside=5) == 3 * 4 * (count + 5)


def test_bytes_of_dimchop_s_scores_are_those_of_its_state() -> None:
    asked = dataclasses.replace(settings(), dimchop=DimChopSettings(0.5, 0, 10))
    made = mesh.make_mesh(devices=jax.devices()[:1])
    rule = make_optimizer(asked.optimizer, asked.total_steps)
    params = step.abstract_params(CONFIG, "float32", made)
    state = step.abstract_state(params, rule, asked, made)
    arrays = sum(leaf.size * 4 for leaf in jax.tree.leaves(state) if leaf.ndim)
    assert space.checkpoint_bytes(CONFIG, asked) == arrays


def test_refused_with_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = space.checkpoint_bytes(CONFIG, settings())
    free = 2 * size - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**9, 0, free))
    with pytest.raises(UserError, match=rf"2 more checkpoints of {size:,} bytes.* {free:,} are"):
        space.check_training(tmp_path, CONFIG, settings(), 0, 0)
    space.check_training(tmp_path, CONFIG, settings(), 5, 1)  # one more
    space.check_training(tmp_path, CONFIG, settings(), 10, 2)  # done


def test_a_file_system_that_does_not_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(0, 0, 0))
    space.check_training(tmp_path, CONFIG, settings(), 0, 0)
