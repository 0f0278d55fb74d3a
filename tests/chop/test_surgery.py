"""Slicing config.json, parameters and optimizer state by one keep list."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import families
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import transformers
from trees import structure

from chopjax.checkpoint.structures import ROWS
from chopjax.chop.configurations import choose
from chopjax.chop.surgery import chop_config, chop_params, chop_tree
from chopjax.errors import UserError
from chopjax.models.families import FAMILIES, translate

KEEP = (0, 2, 3)


def parameters(layers: int = 5) -> dict:
    def random(*shape):
        return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)

    return {
        "embed": {"embedding": random(7, 4)},
        "blocks": {
            "attention": {"query": random(layers, 4, 2, 2)},
            "mlp": {"up": random(layers, 4, 8), "up_bias": random(layers, 8)},
        },
        "final_norm": {"scale": random(4)},
    }


def assert_equal(found, expected):
    """Up to the rounding of a kernel compiled for another shape."""
    assert structure(found) == structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-6), found, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_config_changes_only_the_number_of_layers(family):
    needed = {"num_key_value_heads": 8} if family == "nemotron" else {}
    config = transformers.AutoConfig.for_model(family, **needed)
    raw = json.loads(config.to_json_string())
    chopped = chop_config(raw, FAMILIES[family], choose("both", 12, 5)[:4])
    key = FAMILIES[family].num_layers_key
    assert list(chopped) == list(raw)
    lists = {key for field in ROWS[family].all_fields for key in field.keys}
    changed = {k for k in raw if raw[k] != chopped[k]}
    assert changed - lists == {key}
    assert translate(chopped)[1].num_layers == 4


@pytest.mark.parametrize("keep", [(0, 2, 3), (1,), (2, 3)])
@pytest.mark.parametrize("family", families.NAMES)
def test_config_of_the_kept_layers_computes_them(family, keep):
    """What the registry makes of config.json means to a family what its own layers mean."""
    for seed in range(12):
        raw = {"model_type": family, **families.draw(family, seed)}
        parent = FAMILIES[family].translate(raw)
        chopped = chop_config(raw, FAMILIES[family], keep)
        assert FAMILIES[family].translate(chopped) == parent.keep(keep), (raw, chopped)


def test_config_that_leaves_the_number_to_the_default():
    raw = {"model_type": "gpt2", "n_embd": 24}
    assert chop_config(raw, FAMILIES["gpt2"], (0, 11)) == {**raw, "n_layer": 2}


def test_per_layer_lists_follow():
    raw = {
        "model_type": "llama",
        "layer_types": ["full_attention", "sliding", "full_attention", "sliding", "chunked"],
        "num_hidden_layers": 5,
        "eos_token_id": [1, 2, 3, 4, 5],  # five by chance
        "mlp_layer_names": ["a", "b"],  # not one a layer
    }
    chopped = chop_config(raw, FAMILIES["llama"], KEEP)
    assert list(chopped) == list(raw)
    assert chopped == raw | {
        "layer_types": ["full_attention", "full_attention", "sliding"],
        "num_hidden_layers": 3,
    }


def test_kinds_left_to_a_pattern_are_written_out():
    """max_window_layers is an index: without the list, the kept layers would all be full."""
    raw = {"model_type": "qwen3", "num_hidden_layers": 5, "sliding_window": 64}
    raw |= {"use_sliding_window": True, "max_window_layers": 2}
    chopped = chop_config(raw, FAMILIES["qwen3"], (0, 2, 4))
    kinds = ["full_attention", "sliding_attention", "sliding_attention"]
    assert chopped == raw | {"num_hidden_layers": 3, "layer_types": kinds}
    parent, child = (FAMILIES["qwen3"].translate(config) for config in (raw, chopped))
    assert child == parent.keep((0, 2, 4))
    plain = raw | {"use_sliding_window": False}
    assert chop_config(plain, FAMILIES["qwen3"], (0, 1)) == plain | {"num_hidden_layers": 2}


def test_parameters_in_numpy_stay_in_numpy():
    params = parameters()
    chopped = chop_params(params, KEEP)
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(chopped))
    assert chopped["embed"]["embedding"] is params["embed"]["embedding"]
    np.testing.assert_array_equal(
        chopped["blocks"]["mlp"]["up"], params["blocks"]["mlp"]["up"][[0, 2, 3]]
    )


def decay_mask(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: "bias" not in str(path), params)


OPTIMIZERS = {
    "lion": lambda: optax.lion(1e-3, b1=0.9, b2=0.95, mu_dtype=jnp.bfloat16, mask=decay_mask),
    "adamw": lambda: optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(optax.cosine_decay_schedule(1e-3, 10), mask=decay_mask),
    ),
    "multisteps": lambda: optax.MultiSteps(optax.adamw(1e-3), 3),
    "frozen_embeddings": lambda: optax.partition(
        {"train": optax.inject_hyperparams(optax.adamw)(1e-3), "freeze": optax.set_to_zero()},
        lambda params: jax.tree_util.tree_map_with_path(
            lambda path, _: "freeze" if "embed" in str(path[0]) else "train", params
        ),
    ),
    "masked": lambda: optax.masked(
        optax.lion(1e-3), lambda p: jax.tree.map(lambda leaf: leaf.ndim > 1, p)
    ),
    "ema": lambda: optax.ema(0.9),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_chopping_commutes_with_training(name):
    """Element-wise rules: update then chop is chop then update, state and all."""
    optimizer = OPTIMIZERS[name]()
    update = jax.jit(optimizer.update)
    params = jax.tree.map(jnp.asarray, parameters())
    state = jax.jit(optimizer.init)(params)
    # Tiny gradients: the global norm differs when layers are gone, and must not clip.
    gradients = jax.tree.map(lambda leaf: jnp.asarray(1e-3 * np.cos(leaf)), params)
    for _ in range(2):
        _, state = update(gradients, state, params)
    chopped = chop_tree({"params": params, "state": state}, KEEP)
    assert structure(chopped["state"]) == structure(state)
    fresh = jax.eval_shape(optimizer.init, chop_params(params, KEEP))
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), fresh)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), chopped["state"]) == shapes
    small = chop_params(gradients, KEEP)
    updates, after = update(small, chopped["state"], chopped["params"])
    expected_updates, expected_state = update(gradients, state, params)
    assert_equal(updates, chop_params(expected_updates, KEEP))
    assert_equal(after, chop_tree(expected_state, KEEP))


def test_state_without_a_layer_axis_is_refused():
    state = optax.adafactor(1e-3, min_dim_size_to_factor=2).init(
        jax.tree.map(jnp.asarray, parameters())
    )
    with pytest.raises(UserError, match=r"(?s)first axis.*blocks.*optimizer state"):
        chop_tree(state, KEEP)


@pytest.mark.parametrize("keep", [(), (0, 5), (-1, 0)])
def test_layers_that_are_not_there(keep):
    with pytest.raises(UserError, match="of 5"):
        chop_params(parameters(), keep)


def test_shapes_stay_shapes():
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, parameters()))
    chopped = chop_tree(shapes, KEEP)
    assert chopped["blocks"]["mlp"]["up"] == jax.ShapeDtypeStruct((3, 4, 8), jnp.float32)
    assert chopped["embed"] == shapes["embed"]


SHARDED = """
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from chopjax.chop.surgery import chop_tree
keep = (0, 2, 3)
full = np.arange(5 * 8 * 4, dtype=np.float32).reshape(5, 8, 4)
for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((2, 2), ("fsdp", "tensor"), axis_types=(kind,) * 2)
    for spec in (P(None, "fsdp", "tensor"), P(None, ("fsdp", "tensor")), P()):
        sharding = NamedSharding(mesh, spec)
        params = {"blocks": {"up": jax.device_put(full, sharding)}}
        tree = {"params": params, "state": optax.adamw(1e-3).init(params)}
        chopped = chop_tree(tree, keep)
        leaves = jax.tree.leaves(chopped)
        for leaf in (chopped["params"]["blocks"]["up"], chopped["state"][0].mu["blocks"]["up"]):
            assert leaf.shape == (3, 8, 4)
            assert leaf.sharding == sharding, (leaf.sharding, sharding)
        np.testing.assert_array_equal(chopped["params"]["blocks"]["up"], full[list(keep)])
print("same shardings")
"""


def test_arrays_on_a_mesh_keep_their_sharding():
    done = subprocess.run(
        [sys.executable, "-c", SHARDED],
        # Without our mesh, which turns the cache off where it loses the order of collectives.
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "4", "JAX_ENABLE_COMPILATION_CACHE": "false"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "same shardings", done.stderr


def test_config_part_imports_no_jax():
    code = "import sys, chopjax.chop.surgery, chopjax.chop.stream; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
