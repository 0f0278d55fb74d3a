"""The chunked cross-entropy against the plain one, in float64, by value and gradient."""

from __future__ import annotations

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from chopjax.models.chunks import chunk_of
from chopjax.models.head import Head
from chopjax.models.loss import cross_entropy, token_losses
from chopjax.models.mesh import make_mesh


def plain(hidden_BTE, kernel_EV, targets_BT, weights_BT, z_loss):
    logits_BTV = hidden_BTE @ kernel_EV
    log_z_BT = jax.scipy.special.logsumexp(logits_BTV, axis=-1)
    target_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    nll_BT = log_z_BT - target_BT
    return jnp.sum(weights_BT * (nll_BT + z_loss * log_z_BT**2)), jnp.sum(weights_BT * nll_BT)


def example(B, T, E, V, seed, dtype):
    random = np.random.default_rng(seed)
    hidden_BTE = jnp.asarray(random.normal(size=(B, T, E)), dtype)
    kernel_EV = jnp.asarray(random.normal(size=(E, V)), dtype)
    targets_BT = jnp.asarray(random.integers(0, V, (B, T)), jnp.int32)
    weights_BT = jnp.asarray(random.random((B, T)) * (random.random((B, T)) < 0.8), dtype)
    return hidden_BTE, kernel_EV, targets_BT, weights_BT


@pytest.mark.parametrize(
    ("B", "T", "V", "chunk", "z_loss"),
    [(3, 9, 40, 27, 0.1), (3, 9, 40, 4, 0.1), (2, 5, 7, 3, 0.0), (1, 1, 2, 40, 0.0)],
)
def test_value_and_gradient_in_float64(B, T, V, chunk, z_loss):
    with jax.enable_x64(True):
        hidden, kernel, targets, weights = example(B, T, 8, V, chunk, jnp.float64)

        def ours(h, k):
            return cross_entropy(h, Head(k), targets, weights, z_loss, chunk)

        def theirs(h, k):
            return plain(h, k, targets, weights, z_loss)

        (got, got_gradients), (want, want_gradients) = (
            jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(hidden, kernel)
            for loss in (ours, theirs)
        )
        np.testing.assert_allclose(got, want, rtol=1e-12)
        for a, b in zip(got_gradients, want_gradients, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
        losses = token_losses(hidden, Head(kernel), targets, chunk)
        np.testing.assert_allclose(jnp.sum(losses * weights), want[1], rtol=1e-12)


def test_forward_alone_equals_forward_of_the_gradient():
    hidden, kernel, targets, weights = example(2, 7, 8, 30, 0, jnp.float32)
    alone = cross_entropy(hidden, Head(kernel), targets, weights, 0.01, 4)
    (total, nll), _ = jax.value_and_grad(cross_entropy, (0, 1), has_aux=True)(
        hidden, Head(kernel), targets, weights, 0.01, 4
    )
    np.testing.assert_allclose(alone, (total, nll), rtol=1e-6)


def test_the_cotangent_scales_the_gradient():
    hidden, kernel, targets, weights = example(2, 7, 8, 30, 0, jnp.float32)

    def scaled(h, by):
        return by * cross_entropy(h, Head(kernel), targets, weights, 0.0, 5)[0]

    once, thrice = (jax.grad(scaled)(hidden, by) for by in (1.0, 3.0))
    np.testing.assert_allclose(thrice, 3 * once, rtol=1e-6)


def test_large_logits_stay_finite():
    hidden = jnp.full((1, 2, 1), 1e4)
    kernel = jnp.array([[-1.0, 0.0, 1.0]])
    targets = jnp.array([[2, 0]], jnp.int32)
    np.testing.assert_allclose(token_losses(hidden, Head(kernel), targets), [[0.0, 2e4]])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dtypes_of_the_gradients_follow_the_inputs(dtype):
    hidden, kernel, targets, weights = example(2, 5, 8, 30, 1, jnp.float32)

    def ours(h, k):
        return cross_entropy(h, Head(k), targets, weights, 0.0, 4)[0]

    got = jax.grad(ours, (0, 1))(hidden.astype(dtype), kernel)
    assert got[0].dtype == dtype
    assert got[1].dtype == jnp.float32
    want = jax.grad(lambda h, k: plain(h, k, targets, weights, 0.0)[0], (0, 1))(hidden, kernel)
    tolerance = 1e-5 if dtype == jnp.float32 else 0.1
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=tolerance)


def ours_of_half(hidden, table, targets, weights, chunk=64):
    """Over a tied table [V, E]."""
    return cross_entropy(hidden, Head(table.T, tied=True), targets, weights, 0.0, chunk)[0]


def test_gradients_of_a_tied_table_of_bfloat16():
    """Rounded where it is multiplied, added up in float32. Split over all devices, too, of which
    test_distilled_loss.py has eight."""
    hidden, kernel, targets, weights = example(8, 32, 24, 300, 0, jnp.float32)
    half, table = hidden.astype(jnp.bfloat16), kernel.T.astype(jnp.bfloat16)
    wide = half.astype(jnp.float32), table.astype(jnp.float32)
    want = jax.grad(lambda h, k: plain(h, k.T, targets, weights, 0.0)[0], (0, 1))(*wide)
    back = jax.jit(jax.grad(ours_of_half, (0, 1)), static_argnames="chunk")
    found = [back(half, table, targets, weights, chunk=chunk) for chunk in (64, 256)]
    with jax.set_mesh(make_mesh(fsdp=jax.device_count())):
        found.append(back(half, table, targets, weights))
    for gradients in found:
        for got, exact in zip(gradients, want, strict=True):
            assert got.dtype == jnp.bfloat16
            difference = np.abs(np.asarray(got, np.float32) - exact)
            assert difference.max() < 0.01 * np.abs(exact).max()


def test_gradients_of_a_tied_table_of_bfloat16_are_not_made_of_float32():
    """Where the processor multiplies bfloat16 at all; and the table stays as it lies."""
    V, E, C = 300, 24, 64
    table = jax.ShapeDtypeStruct((V, E), jnp.bfloat16)
    hidden = jax.ShapeDtypeStruct((1, 4 * C, E), jnp.bfloat16)
    targets, weights = (jax.ShapeDtypeStruct((1, 4 * C), d) for d in (jnp.int32, jnp.float32))
    forward, back = (
        str(jax.jit(function).lower(hidden, table, targets, weights).compile().as_text())
        for function in (ours_of_half, jax.grad(ours_of_half, (0, 1)))
    )
    half = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((C, V), (V, E))]
    product = jax.jit(lambda x, y: jnp.dot(x, y, preferred_element_type=jnp.float32))
    if f"f32[{V},{E}]" in str(product.lower(*half).compile().as_text()):
        pytest.skip("this processor multiplies float32 alone")
    assert f"bf16[{E},{V}]" not in forward
    made = [line for text in (forward, back) for line in text.splitlines() if " convert(" in line]
    wide = [f"= f32[{shape}]" for shape in (f"{C},{E}", f"{E},{C}", f"{V},{E}", f"{E},{V}")]
    assert made
    assert not [line for line in made if any(each in line for each in wide)]


def test_logits_never_exist_whole():
    B, T, E, V, chunk = 4, 64, 8, 1000, 16
    hidden, kernel, targets, weights = example(B, T, E, V, 0, jnp.float32)

    def ours(h, k):
        return cross_entropy(h, Head(k), targets, weights, 0.0, chunk)[0]

    jaxpr = jax.make_jaxpr(jax.grad(ours, (0, 1)))(hidden, kernel)
    largest = max(sizes(jaxpr.jaxpr))
    assert largest == max(chunk * V, E * V)


def sizes(jaxpr):
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield getattr(variable.aval, "size", 0)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from sizes(inner)


def test_a_chunk_is_as_large_as_suits_the_backend() -> None:
    assert chunk_of(7) == chunk_of(7, "gpu") == 7
    assert chunk_of(0) == chunk_of(0, "cpu") == 512
    assert chunk_of(0, "gpu") == chunk_of(0, "tpu") == 2048
