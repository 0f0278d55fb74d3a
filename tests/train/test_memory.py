"""Training memory against the arrays that optax really makes."""

from __future__ import annotations

import jax
import optax
import pytest

from chopjax.models import decoder
from chopjax.models.config import Layer, ModelConfig, Norm
from chopjax.train import memory

CONFIG = ModelConfig(
    family="gpt2",
    vocab_size=64,
    embed_dim=16,
    layers=(Layer(),) * 2,
    num_heads=2,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=64,
    max_positions=32,
    norm=Norm("layer", 1e-5, bias=True),
    activation="gelu_tanh",
    tie_embeddings=True,
    positions="learned",
    qkv_bias=True,
    output_bias=True,
    mlp_bias=True,
)


def nbytes(tree: object) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("choice", memory.choices(CONFIG), ids=str)
def test_bytes_are_those_of_optax(choice: memory.TrainingMemory) -> None:
    params = decoder.abstract(CONFIG, choice.param_dtype)
    make = {"lion": optax.lion, "adamw": optax.adamw}[choice.optimizer]
    optimizer = make(1e-3, mu_dtype=choice.momentum_dtype)
    state = jax.eval_shape(optimizer.init, params)
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]  # no counters
    assert choice.params == choice.gradients == nbytes(params)
    assert choice.moments == nbytes(moments)
    assert choice.total == 2 * nbytes(params) + nbytes(moments)


def test_every_choice_is_there_once() -> None:
    found = {(c.optimizer, c.param_dtype, c.momentum_dtype) for c in memory.choices(CONFIG)}
    assert len(found) == len(memory.choices(CONFIG)) == 8
