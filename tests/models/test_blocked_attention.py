"""Attention in blocks of queries against jax's own, by value and gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chopjax.models import blocked_attention
from chopjax.models.attention import attend, choose
from chopjax.models.blocked_attention import blocked_attention as blocked
from chopjax.models.scores import PLAIN, Scores

B, T, N, K, H = 2, 19, 4, 2, 8


def drawn(batch):
    """Query, key, value and a cotangent of the output, and up to three documents a row."""
    random = np.random.default_rng(0)
    shapes = [(batch, T, N, H), (batch, T, K, H), (batch, T, K, H), (batch, T, N, H)]
    arrays = [jnp.asarray(random.normal(size=s), jnp.float32) for s in shapes]
    return arrays, jnp.asarray(np.sort(random.integers(0, 3, (batch, T))), jnp.int32)


@pytest.mark.parametrize("most", [100, 3])
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("window", [None, 1, 6, 19, pytest.param(40, marks=pytest.mark.thorough)])
def test_value_and_gradients(monkeypatch, most, documents, window):
    """Blocks of 4 (the last one of 3) and of 7, grouped heads, with and without documents."""
    monkeypatch.setattr(blocked_attention, "BLOCK", 4)
    monkeypatch.setattr(blocked_attention, "MOST_BLOCKS", most)
    (query, key, value, ct), segments = drawn(B)
    segments = segments if documents else None

    def of(run):
        return jax.jit(lambda *x: (*jax.vjp(run, *x)[1](ct), run(*x)))(query, key, value)

    got = of(lambda q, k, v: blocked(q, k, v, segments, Scores(window=window)))
    want = of(lambda q, k, v: attend(q, k, v, segments, "xla", Scores(window=window)))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=3e-6)


@pytest.mark.parametrize("batch", [4, 5])
def test_rows_in_groups(monkeypatch, batch):
    """Two at a time, which of five rows computes one twice: value and gradients as of one group."""
    monkeypatch.setattr(blocked_attention, "BLOCK", 4)
    (query, key, value, ct), segments = drawn(batch)

    def made(at_once):
        monkeypatch.setattr(blocked_attention, "_rows_at_once", lambda query: at_once)

        def run(*x):
            mixed, back = jax.vjp(lambda *x: blocked(*x, segments, PLAIN), *x)
            return mixed, *back(ct)

        return jax.jit(run)(query, key, value)

    for a, b in zip(made(2), made(batch), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-6)


@pytest.mark.parametrize(
    "scores",
    [Scores(scale=0.5, cap=1.5), Scores(cap=0.7, window=6), Scores(slopes=(0.5, 0.25, 0.1, 0.7))],
    ids=["cap", "cap in a window", "ALiBi"],
)
def test_capped_and_sloping_scores(monkeypatch, scores):
    """Both implementations, value and gradients, against numpy's float64 and each other."""
    monkeypatch.setattr(blocked_attention, "BLOCK", 4)
    (query, key, value, ct), segments = drawn(B)

    def of(run):
        return jax.jit(lambda *x: (*jax.vjp(run, *x)[1](ct), run(*x)))(query, key, value)

    got = of(lambda q, k, v: blocked(q, k, v, segments, scores))
    want = of(lambda q, k, v: attend(q, k, v, segments, "xla", scores))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=3e-6)
    wide = [np.repeat(np.asarray(x, np.float64), N // x.shape[2], 2) for x in (query, key, value)]
    score = np.einsum("btnh,bsnh->bnts", wide[0], wide[1]) * (scores.scale or H**-0.5)
    distance = np.arange(T)[:, None] - np.arange(T)
    if scores.cap:
        score = scores.cap * np.tanh(score / scores.cap)
    if scores.slopes:
        score -= np.asarray(scores.slopes)[:, None, None] * distance
    visible = (distance >= 0) & (distance < (scores.window or T))
    visible = visible & (segments[:, :, None] == segments[:, None, :])[:, None]
    weight = np.where(visible, np.exp(score), 0)
    mixed = np.einsum("bnts,bsnh->btnh", weight / weight.sum(-1, keepdims=True), wide[2])
    np.testing.assert_allclose(got[-1], mixed, atol=3e-6)


def test_half_the_scores_are_never_computed():
    x = jax.ShapeDtypeStruct((1, 1024, 1, 64), jnp.float32)

    def flops(implementation):
        def loss(q, k, v):
            return attend(q, k, v, implementation=implementation).sum()

        costs = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x).compile().cost_analysis()
        assert costs is not None
        return costs["flops"]

    # Of 8 blocks 36 of 64 squares; two forward products and five backward against two and four.
    assert flops("blocked") < 0.72 * flops("xla")


def test_keys_out_of_the_window_are_never_met():
    x = jax.ShapeDtypeStruct((1, 1024, 1, 64), jnp.float32)

    def flops(window):
        run = lambda q, k, v: attend(q, k, v, None, "blocked", Scores(window=window)).sum()  # noqa: E731
        costs = jax.jit(run).lower(x, x, x).compile().cost_analysis()
        assert costs is not None
        return costs["flops"]

    # 8 blocks of 128 queries with 128 + 127 keys, in the place of 36 of 128 x 128.
    assert flops(128) < 0.5 * flops(None)


def test_chosen_on_one_processor_alone():
    assert choose(256, jnp.float32, 64, [PLAIN], "cpu") == ("blocked", None)
    chosen, reason = choose(256, jnp.float32, 64, [PLAIN], "gpu")
    assert (chosen, reason) == ("xla", "cudnn takes bfloat16, not float32")
    mesh = jax.sharding.AbstractMesh((2,), ("data",))
    with jax.sharding.use_abstract_mesh(mesh):
        chosen, reason = choose(256, jnp.float32, 64, [PLAIN], "cpu")
    assert chosen == "xla"
    assert reason == "blocked takes the batch apart, which must lie on one device"
