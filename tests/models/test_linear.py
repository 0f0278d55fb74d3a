"""The product with a weight matrix: jax's own derivative, in another order."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chopjax.models.linear import linear


@pytest.mark.parametrize(
    ("equation", "x", "kernel", "contracted"),
    [
        ("BTD,DF->BTF", (2, 5, 6), (6, 7), 1),
        ("BTD,DNH->BTNH", (2, 5, 6), (6, 2, 3), 1),
        ("BTNH,NHD->BTD", (2, 5, 2, 3), (2, 3, 6), 2),
    ],
)
def test_value_and_gradients_are_einsum_s(equation, x, kernel, contracted):
    random = np.random.default_rng(0)
    x, kernel = (jnp.asarray(random.normal(size=shape), jnp.float32) for shape in (x, kernel))
    got, back = jax.vjp(lambda x, k: linear(x, k, contracted), x, kernel)
    want, wanted_back = jax.vjp(lambda x, k: jnp.einsum(equation, x, k), x, kernel)
    d_y = jnp.asarray(random.normal(size=want.shape), jnp.float32)
    for a, b in zip((got, *back(d_y)), (want, *wanted_back(d_y)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
