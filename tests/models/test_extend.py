"""`extend` gives what `hidden_states` gives: over packed trees, and over a past."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chopjax.models import decoder
from chopjax.models.compute import Compute
from chopjax.models.config import Layer, ModelConfig, Norm, Rope
from chopjax.models.decoder import Past
from chopjax.models.parameters import Params

extend = jax.jit(decoder.extend, static_argnums=(1, 2))
hidden_states = jax.jit(decoder.hidden_states, static_argnums=(1, 2))

SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "embed_dim": 24,
    "num_heads": 4,
    "head_dim": 8,
    "mlp_dim": 40,
    "max_positions": 400,
}
LLAMA = ModelConfig(
    family="llama",
    layers=(Layer(rope=Rope()),) * 3,
    norm=Norm("rms", 1e-5),
    activation="silu",
    tie_embeddings=False,
    gated_mlp=True,
    num_kv_heads=2,
    **SMALL,
)
GPT2 = ModelConfig(
    family="gpt2",
    layers=(Layer(),) * 3,
    norm=Norm("layer", 1e-5, bias=True),
    positions="learned",
    activation="gelu_tanh",
    tie_embeddings=True,
    qkv_bias=True,
    output_bias=True,
    mlp_bias=True,
    num_kv_heads=4,
    **SMALL,
)


@pytest.fixture(scope="module", params=[LLAMA, GPT2], ids=lambda config: config.family)
def model(request: pytest.FixtureRequest) -> tuple[ModelConfig, Params]:
    params = decoder.init(request.param, jax.random.key(0))
    return request.param, jax.tree.map(lambda w: w * 4 if w.ndim > 1 else w, params)


def test_a_packed_tree_equals_its_paths(model: tuple[ModelConfig, Params]) -> None:
    """Two continuations of one context in one row, in preorder, against two rows."""
    config, params = model
    generator = np.random.default_rng(0)
    context, first, second = (generator.integers(0, 61, n) for n in (150, 30, 20))
    tokens = np.concatenate([context, first, second])[None]
    positions = np.concatenate([np.arange(180), np.arange(150, 170)])[None]
    visible = np.tril(np.ones((200, 200), bool))
    visible[180:, 150:180] = False
    packed, _ = extend(
        params, config, Compute(), jnp.asarray(tokens), jnp.asarray(positions), visible[None]
    )
    for branch, part in ((first, packed[0, 150:180]), (second, packed[0, 180:])):
        alone = np.concatenate([context, branch])[None]
        expected = hidden_states(params, config, Compute(), jnp.asarray(alone))
        np.testing.assert_allclose(part, expected[0, 150:], atol=1e-4)
        np.testing.assert_allclose(packed[0, :150], expected[0, :150], atol=1e-4)


@pytest.mark.parametrize("shared", [True, False])
def test_a_past_equals_the_whole(model: tuple[ModelConfig, Params], shared: bool) -> None:
    """Keys and values computed before, with empty slots behind them, against one pass."""
    config, params = model
    tokens = np.random.default_rng(1).integers(0, 61, (3, 90))
    if shared:
        tokens[:, :40] = tokens[0, :40]
    expected = hidden_states(params, config, Compute(), jnp.asarray(tokens))
    rows = 1 if shared else 3

    def causal(length: int) -> np.ndarray:
        return np.tril(np.ones((1, length, length), bool))

    begin, (key, value) = extend(
        params,
        config,
        Compute(),
        jnp.asarray(tokens[:rows, :40]),
        jnp.arange(40)[None].repeat(rows, 0),
        causal(40).repeat(rows, 0),
    )
    np.testing.assert_allclose(begin, expected[:rows, :40], atol=1e-4)
    pad = ((0, 0), (0, 0), (0, 7), (0, 0), (0, 0))
    past = Past(
        jnp.pad(key, pad, constant_values=9.0),
        jnp.pad(value, pad, constant_values=9.0),
        jnp.arange(47)[None].repeat(rows, 0) < 40,
        jnp.arange(47)[None].repeat(rows, 0),
    )
    positions = jnp.arange(40, 90)[None].repeat(3, 0)
    rest, _ = extend(
        params,
        config,
        Compute(),
        jnp.asarray(tokens[:, 40:]),
        positions,
        causal(50).repeat(3, 0),
        past,
    )
    np.testing.assert_allclose(rest, expected[:, 40:], atol=1e-4)
