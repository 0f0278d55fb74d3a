"""Rotary positions: in the form for TPUs as in the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chopjax.models.config import Rope
from chopjax.models.positions import angles, rotate, rotated_by_pairs, rotated_by_product


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dims", [None, 12])
def test_a_product_turns_as_pairs_do(dtype: str, interleaved: bool, dims: int | None):
    """To the last bit but for a fused multiply-add; numbers that do not turn stay as they are."""
    cos, sin = angles(Rope(theta=1e4, dims=dims), 16, jnp.arange(40)[None] * 17)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 40, 3, 16)), dtype)
    plain, product = (
        np.asarray(turn(x, cos, sin, interleaved), np.float32)
        for turn in (rotated_by_pairs, rotated_by_product)
    )
    apart = 2.0**-22 if dtype == "float32" else 2.0**-7
    np.testing.assert_allclose(plain, product, rtol=apart, atol=2.0**-22)
    assert (plain == product).mean() > 0.9
    np.testing.assert_array_equal(
        product[..., dims or 16 :], np.asarray(x, np.float32)[..., dims or 16 :]
    )


@pytest.mark.parametrize("interleaved", [False, True])
def test_the_gradient_is_that_of_the_pairs(interleaved: bool):
    """Which is turned back by hand."""
    cos, sin = angles(Rope(theta=1e4), 16, jnp.arange(40)[None])
    random = np.random.default_rng(1)
    x, d = (jnp.asarray(random.normal(size=(2, 40, 3, 16)), jnp.float32) for _ in range(2))
    (ours,) = jax.vjp(lambda x: rotate(x, cos, sin, interleaved), x)[1](d)
    (plain,) = jax.vjp(lambda x: rotated_by_pairs(x, cos, sin, interleaved), x)[1](d)
    np.testing.assert_allclose(ours, plain, rtol=1e-6, atol=1e-6)


def test_the_form_is_the_platform_s():
    cos, sin = angles(Rope(theta=1e4), 16, jnp.arange(8)[None])
    traced = jax.jit(rotate).trace(jnp.zeros((1, 8, 2, 16)), cos, sin)
    texts = {
        name: traced.lower(lowering_platforms=(name,)).as_text() for name in ("tpu", "cuda", "cpu")
    }
    assert {name: "dot_general" in text for name, text in texts.items()} == {
        "tpu": True, "cuda": False, "cpu": False,
    }  # fmt: skip
    here = traced.lower().compile().as_text()
    assert here is not None
    assert "conditional" not in here  # nothing is left to choose
