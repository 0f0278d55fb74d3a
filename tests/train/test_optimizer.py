"""Lion and AdamW against their papers' algorithms in numpy; the schedule by its corners."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from chopjax.models import decoder, families, parameters
from chopjax.train import optimizer
from chopjax.train.settings import OptimizerSettings

CONFIG = families.translate(
    {
        "model_type": "opt",
        "vocab_size": 7,
        "hidden_size": 4,
        "ffn_dim": 6,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 5,
        "word_embed_proj_dim": 4,
    }
)[1]
STEPS = 6


def lion(w, g, state, lr, s, decay):
    m = state.setdefault("m", np.zeros_like(w))
    update = np.sign(s.b1 * m + (1 - s.b1) * g)
    state["m"] = s.b2 * m + (1 - s.b2) * g
    return w - lr * (update + decay * w)


def adamw(w, g, state, lr, s, decay):
    m, v = state.setdefault("m", np.zeros_like(w)), state.setdefault("v", np.zeros_like(w))
    t = state["t"] = state.get("t", 0) + 1
    m = state["m"] = s.b1 * m + (1 - s.b1) * g
    v = state["v"] = s.b2 * v + (1 - s.b2) * g * g
    update = (m / (1 - s.b1**t)) / (np.sqrt(v / (1 - s.b2**t)) + 1e-8)
    return w - lr * (update + decay * w)


def rate(step, s, total):
    """Warm-up to the peak, half a cosine to a part of it; steps count from 1."""
    if step <= s.warmup_steps:
        return s.peak_learning_rate * step / s.warmup_steps
    done = (step - s.warmup_steps) / (total - s.warmup_steps)
    low = s.final_fraction * s.peak_learning_rate
    return low + (s.peak_learning_rate - low) * 0.5 * (1 + math.cos(math.pi * done))


@pytest.mark.parametrize(("name", "decay"), [("lion", 1e-4), ("adamw", 0.1)])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_against_numpy(name, decay, clip):
    s = OptimizerSettings(
        name=name,
        peak_learning_rate=0.01,
        warmup_steps=2,
        weight_decay=decay,
        clip_norm=clip,
        momentum_dtype="float64",  # type: ignore[arg-type]  # not offered to users; the comparison is tighter
    )
    random = np.random.default_rng(0)
    shapes = parameters.shapes(CONFIG)
    weights = {path: random.normal(size=shape) for path, shape in shapes.items()}
    grads = [{p: random.normal(size=x.shape) for p, x in weights.items()} for _ in range(STEPS)]
    with jax.enable_x64(True):
        rule = optimizer.make_optimizer(s, STEPS)
        ours = unflatten_dict({p: jnp.asarray(w) for p, w in weights.items()}, sep="/")
        state = rule.init(ours)

        @jax.jit
        def update(params, state, gradient):
            updates, state = rule.update(gradient, state, params)
            return jax.tree.map(lambda p, u: p + u, params, updates), state

        for gradient in grads:
            ours, state = update(ours, state, unflatten_dict(gradient, sep="/"))

    states: dict[str, dict] = {path: {} for path in weights}
    for step, gradient in enumerate(grads, 1):
        norm = math.sqrt(sum(np.sum(g**2) for g in gradient.values()))
        scale = min(1.0, clip / norm) if clip else 1.0
        for path, w in weights.items():
            has_decay = not ("norm" in path or path.endswith("bias"))
            weights[path] = (lion if name == "lion" else adamw)(
                w,
                gradient[path] * scale,
                states[path],
                rate(step, s, STEPS),
                s,
                decay if has_decay else 0.0,
            )
    for path, got in flatten_dict(ours, sep="/").items():
        np.testing.assert_allclose(got, weights[path], rtol=1e-6, atol=1e-8, err_msg=path)


def test_no_decay_on_norms_and_biases_alone():
    decayed = flatten_dict(optimizer.decayed(decoder.abstract(CONFIG)), sep="/")
    without = {path for path, decays in decayed.items() if not decays}
    assert without == {
        path for path in decayed if "norm" in path or path.split("/")[-1].endswith("bias")
    }
    assert decayed["embed/embedding"]
    assert decayed["embed/positions"]
    assert not decayed["blocks/attention/query_bias"]
    assert not decayed["final_norm/scale"]


def test_the_schedule():
    s = OptimizerSettings(peak_learning_rate=1.0, warmup_steps=4, final_fraction=0.1)
    got = [float(optimizer.learning_rate(s, 10)(update)) for update in range(12)]
    np.testing.assert_allclose(got[:10], [rate(step, s, 10) for step in range(1, 11)], rtol=1e-6)
    assert got[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert got[9:] == pytest.approx([0.1, 0.1, 0.1])
    no_warmup = OptimizerSettings(peak_learning_rate=1.0, warmup_steps=0)
    assert float(optimizer.learning_rate(no_warmup, 10)(0)) == pytest.approx(rate(1, no_warmup, 10))


@pytest.mark.parametrize("name", ["lion", "adamw"])
def test_momentum_dtype_is_a_choice(name):
    s = OptimizerSettings(name=name, momentum_dtype="bfloat16")
    params = unflatten_dict(
        {p: jnp.ones(s_) for p, s_ in parameters.shapes(CONFIG).items()}, sep="/"
    )
    state = optimizer.make_optimizer(s, 10).init(params)
    dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves(state) if leaf.ndim}
    assert dtypes == ({"bfloat16"} if name == "lion" else {"bfloat16", "float32"})
