"""Bias, scale and cap of the head: what they are, and the loss's own gradient through them."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import SIZES

from chopjax.models import decoder, families, parameters
from chopjax.models.compute import Compute
from chopjax.models.head import Head, head_of, logits
from chopjax.models.loss import cross_entropy, token_losses
from chopjax.score.engine import Engine

FORMS = [
    {},
    {"bias_V": True},
    {"scale": 0.3},
    {"cap": 2.5},
    {"bias_V": True, "scale": 1.7, "cap": 1.5},
]


def make(form: dict, E: int = 8, V: int = 40) -> Head:
    random = np.random.default_rng(0)
    kernel_EV = jnp.asarray(random.normal(size=(E, V)))
    bias_V = jnp.asarray(random.normal(size=V)) if "bias_V" in form else None
    return Head(kernel_EV, bias_V, form.get("scale", 1.0), form.get("cap"))


def batch(B: int = 4, T: int = 6, E: int = 8, V: int = 40) -> tuple[jax.Array, ...]:
    random = np.random.default_rng(1)
    hidden_BTE = jnp.asarray(random.normal(size=(B, T, E)))
    targets_BT = jnp.asarray(random.integers(0, V, (B, T)), jnp.int32)
    return hidden_BTE, targets_BT, jnp.asarray(random.random((B, T)))


def whole(hidden_BTE: jax.Array, head: Head, targets_BT: jax.Array, weights_BT: jax.Array):
    """The loss from whole logits, with the formula written out."""
    z_BTV = hidden_BTE @ head.kernel_EV
    z_BTV = head.scale * (z_BTV if head.bias_V is None else z_BTV + head.bias_V)
    if head.cap is not None:
        z_BTV = head.cap * jnp.tanh(z_BTV / head.cap)
    log_p_BTV = jax.nn.log_softmax(z_BTV)
    log_z_BT = jax.nn.logsumexp(z_BTV, axis=-1)
    nll_BT = -jnp.take_along_axis(log_p_BTV, targets_BT[..., None], axis=-1)[..., 0]
    return jnp.sum(weights_BT * (nll_BT + 0.1 * log_z_BT**2))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_loss_and_gradients_in_float64(form: dict) -> None:
    with jax.enable_x64(True):
        head, (hidden, targets, weights) = make(form), batch()

        def ours(hidden: jax.Array, head: Head) -> jax.Array:
            return cross_entropy(hidden, head, targets, weights, 0.1, 7)[0]

        got = jax.jit(jax.value_and_grad(ours, (0, 1)))(hidden, head)
        want = jax.value_and_grad(whole, (0, 1))(hidden, head, targets, weights)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
        losses = token_losses(hidden, head, targets, 7)
        log_p = jax.nn.log_softmax(logits(head, hidden))
        want_losses = -jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
        np.testing.assert_allclose(losses, want_losses, rtol=1e-12)


ON_A_MESH = """
import jax, numpy as np
from test_head import FORMS, batch, make, whole
from chopjax.models import mesh
from chopjax.models.loss import cross_entropy

jax.config.update("jax_enable_x64", True)
for shape in ({"fsdp": 2, "tensor": 2}, {"data": 4}, {"data": 2, "tensor": 2}):
    for form in FORMS:
        head, (hidden, targets, weights) = make(form), batch()
        with jax.set_mesh(mesh.make_mesh(**{"data": 1, **shape})):
            def ours(hidden, head):
                return cross_entropy(hidden, head, targets, weights, 0.1, 3)[0]

            got = jax.jit(jax.value_and_grad(ours, (0, 1)))(hidden, head)
        want = jax.value_and_grad(whole, (0, 1))(hidden, head, targets, weights)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
        print("agrees")
"""


def test_the_same_on_a_mesh() -> None:
    environment = os.environ | {
        "JAX_NUM_CPU_DEVICES": "4",
        "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)]),
    }
    done = subprocess.run(
        [sys.executable, "-c", ON_A_MESH], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["agrees"] * 3 * len(FORMS)


def test_a_decoder_has_the_head_that_its_configuration_says() -> None:
    """Rows, initial values and the scorer follow; a bias at its start changes nothing."""
    raw = {"model_type": "llama", **SIZES["llama"]}
    plain = families.translate(raw)[1]
    config = dataclasses.replace(plain, head_bias=True, logit_scale=0.5, logit_cap=0.2)
    added = parameters.shapes(config).items() - parameters.shapes(plain).items()
    assert added == {("head/bias", (97,))}
    params = decoder.init(config, jax.random.key(0))
    np.testing.assert_array_equal(params["head"]["bias"], 0)
    params["head"]["bias"] = jax.random.normal(jax.random.key(1), (97,)) / 10

    text = list(range(5, 45))
    hidden = decoder.hidden_states(params, config, Compute(), jnp.asarray([text]))
    z = 0.5 * (np.asarray(hidden[0], np.float64) @ params["head"]["kernel"])
    z = 0.2 * np.tanh((z + 0.5 * np.asarray(params["head"]["bias"])) / 0.2)
    np.testing.assert_allclose(logits(head_of(params, config), hidden)[0], z, atol=1e-5)
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    ((total, _),) = Engine(config, params).loglikelihood([(text[:20], text[20:])])
    want = log_p[range(19, 39), text[20:]].sum()
    assert abs(total - want) < 1e-4


def test_a_tied_table_of_bfloat16_is_multiplied_as_it_lies() -> None:
    """In a loop over parts of the positions, as losses and scorer take them; it is not turned."""
    table_VE, hidden_BTE = jnp.ones((513, 24), jnp.bfloat16), jnp.ones((2, 64, 24), jnp.bfloat16)

    def most(table_VE: jax.Array, hidden_BTE: jax.Array) -> jax.Array:
        def step(number: jax.Array, most: jax.Array) -> jax.Array:
            part = jax.lax.dynamic_slice_in_dim(hidden_BTE, number * 16, 16, axis=1)
            head = Head(table_VE.T, tied=True)
            return jnp.maximum(most, logits(head, part).max())

        return jax.lax.fori_loop(0, 4, step, jnp.float32(0))

    text = jax.jit(most).lower(table_VE, hidden_BTE).compile().as_text() or ""
    assert "[513,24]" in text
    assert "bf16[24,513]" not in text
    np.testing.assert_array_equal(most(table_VE, hidden_BTE), 24)
