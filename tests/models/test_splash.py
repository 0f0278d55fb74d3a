"""Attention on TPUs, in Pallas' interpreter: one kernel for all gradients, and two."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pallas

from chopjax.models import attention
from chopjax.models.scores import Scores


@pytest.mark.parametrize(("fused", "window"), [(True, None), (True, 100), (False, None)])
def test_value_and_gradients(monkeypatch: pytest.MonkeyPatch, fused: bool, window: int | None):
    """With a tile that nothing is seen in, a window's edge, and two documents."""
    monkeypatch.setattr(attention, "FUSED_TILES", 8 if fused else 1)
    assert attention.splash_is_fused(256) == fused
    random = np.random.default_rng(0)
    query, key, value, weights = (
        jnp.asarray(random.normal(size=(1, 256, heads, 128)), jnp.float32) for heads in (2, 1, 1, 2)
    )
    segments = jnp.asarray(np.arange(256)[None] >= 200, jnp.int32)

    def sums(query: jax.Array, key: jax.Array, value: jax.Array, how: str) -> jax.Array:
        query, (scores,) = attention.before_keeping(query, how, [Scores(window=window)])
        mixed = attention.attend(query, key, value, segments, how, scores)
        return jnp.sum(mixed * weights)

    gradient = jax.value_and_grad(sums, argnums=(0, 1, 2))
    with jax.default_matmul_precision("highest"):
        plain = gradient(query, key, value, "xla")
        with pallas.force_tpu_interpret_mode():
            splash = gradient(query, key, value, "splash")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), plain, splash)


def test_long_rows_take_two_kernels():
    """One would write the queries' gradient for each tile of keys: more than linear in length."""
    assert attention.splash_is_fused(4096)
    assert not attention.splash_is_fused(8192)
    assert not attention.splash_is_fused(128 * 9)
