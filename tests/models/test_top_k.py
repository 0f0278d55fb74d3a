"""The likeliest tokens against a sort of whole logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chopjax.models.head import Head, logits
from chopjax.models.top_k import top_k


def example(B: int, T: int, E: int, V: int) -> tuple[jax.Array, Head]:
    random = np.random.default_rng(0)
    hidden_BTE = jnp.asarray(random.normal(size=(B, T, E)), jnp.float32)
    kernel_EV = random.normal(size=(E, V)).astype(np.float32)
    kernel_EV[:, V // 2] = kernel_EV[:, 1]  # two tokens of equal probability, far from each other
    bias_V = jnp.zeros(V).at[jnp.array([1, V // 2])].set(2.0)
    return hidden_BTE, Head(jnp.asarray(kernel_EV), bias_V, scale=0.7, cap=3.0)


def compare(hidden_BTE: jax.Array, head: Head, k: int, chunk: int) -> None:
    ids, log_probs = jax.jit(lambda h: top_k(h, head, k, chunk))(hidden_BTE)
    assert (ids.dtype, log_probs.dtype) == (jnp.int32, jnp.float32)
    want = np.asarray(jax.nn.log_softmax(logits(head, hidden_BTE)))
    order = np.argsort(-want, axis=-1, kind="stable")[..., :k]
    np.testing.assert_array_equal(ids, order)
    expected = np.take_along_axis(want, order, axis=-1)
    np.testing.assert_allclose(log_probs, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("k", "chunk"), [(1, 512), (5, 4), (39, 7)])
def test_against_a_sort(k: int, chunk: int) -> None:
    compare(*example(3, 5, 8, 40), k, chunk)


def test_logits_never_exist_whole() -> None:
    hidden_BTE, head = example(4, 64, 8, 1000)
    text = str(jax.make_jaxpr(lambda h: top_k(h, head, 3, 16))(hidden_BTE))
    assert "[16,1000]" in text
    assert "[256,1000]" not in text
    assert "[4,64,1000]" not in text
