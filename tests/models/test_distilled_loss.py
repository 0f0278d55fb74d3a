"""The chunked divergence from a teacher against the one of whole logits, in float64."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.test_head import FORMS, batch, make
from models.test_loss import sizes

from chopjax.models.distilled_loss import TopK, Whole, distilled_cross_entropy
from chopjax.models.head import Head, logits
from chopjax.models.loss import cross_entropy

ALPHA, Z_LOSS, CHUNK = 0.3, 0.1, 7
WIDTH = 12  # the teacher's; the student's is 8


def teacher(form: dict) -> Whole:
    hidden_BTE = batch(E=WIDTH)[0] * 1.5
    head = make(form, E=WIDTH)
    return Whole(hidden_BTE[::-1], head.replace(kernel_EV=head.kernel_EV[:, ::-1]))


def top(form: dict, K: int = 5) -> TopK:
    """The K likeliest tokens of that teacher."""
    whole = teacher(form)
    log_p, tokens = jax.lax.top_k(jax.nn.log_softmax(logits(whole.head, whole.hidden_BTE)), K)
    return TopK(tokens, log_p)


def plain(hidden, head, taught, targets, weights, temperature=1.0):
    """The three sums, the formulas written out."""
    logits_BTV = logits(head, hidden)
    log_q_BTV = jax.nn.log_softmax(logits_BTV)
    nll_BT = -jnp.take_along_axis(log_q_BTV, targets[..., None], axis=-1)[..., 0]
    if isinstance(taught, Whole):
        log_p = jax.nn.log_softmax(logits(taught.head, taught.hidden_BTE) / temperature)
        log_q = jax.nn.log_softmax(logits_BTV / temperature)
    else:
        top_q = jnp.take_along_axis(log_q_BTV, taught.tokens_BTK, axis=-1)
        tails = [1 - jnp.exp(x).sum(-1, keepdims=True) for x in (taught.log_probs_BTK, top_q)]
        log_p = jnp.concatenate([taught.log_probs_BTK, jnp.log(tails[0])], -1)
        log_q = jnp.concatenate([top_q, jnp.log(tails[1])], -1)
    kl_BT = (jnp.exp(log_p) * (log_p - log_q)).sum(-1)
    log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    loss_BT = (1 - ALPHA) * nll_BT + ALPHA * temperature**2 * kl_BT + Z_LOSS * log_z_BT**2
    return tuple(jnp.sum(weights * each) for each in (loss_BT, nll_BT, kl_BT))


def compare(form: dict, taught: Whole | TopK, temperature: float, chunk: int = CHUNK) -> None:
    """Sums, and gradients by hidden states and head."""
    head, (hidden, targets, weights) = make(form), batch()

    def ours(hidden, head):
        total, *rest = distilled_cross_entropy(
            hidden, head, taught, targets, weights, ALPHA, temperature, Z_LOSS, chunk
        )
        return total, rest

    def theirs(hidden, head):
        total, *rest = plain(hidden, head, taught, targets, weights, temperature)
        return total, rest

    got = jax.jit(jax.value_and_grad(ours, (0, 1), has_aux=True))(hidden, head)
    want = jax.jit(jax.value_and_grad(theirs, (0, 1), has_aux=True))(hidden, head)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_from_whole_logits_in_float64(form: dict, temperature: float) -> None:
    with jax.enable_x64(True):
        compare(form, teacher(form), temperature)


@pytest.mark.parametrize("K", [1, 5, 39])
def test_from_the_top_in_float64(K: int) -> None:
    with jax.enable_x64(True):
        compare({"bias_V": True, "cap": 2.5}, top({}, K), 1.0)


ON_A_MESH = """
import jax
from models.test_distilled_loss import FORMS, compare, teacher, top
from models.test_loss import test_gradients_of_a_tied_table_of_bfloat16
from chopjax.models import mesh

test_gradients_of_a_tied_table_of_bfloat16()
jax.config.update("jax_enable_x64", True)
for shape in ({"fsdp": 2, "tensor": 4}, {"data": 2, "fsdp": 2, "tensor": 2}):
    with jax.set_mesh(mesh.make_mesh(**{"data": 1, **shape})):
        for form in FORMS[-1:]:
            compare(form, teacher(form), 2.0, 5)
            compare(form, top(form), 1.0, 5)
            print("agrees")
"""


def test_the_same_on_a_mesh() -> None:
    """Rows over data and fsdp, the vocabulary over tensor."""
    environment = os.environ | {
        "JAX_NUM_CPU_DEVICES": "8",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    done = subprocess.run(
        [sys.executable, "-c", ON_A_MESH], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["agrees"] * 2


def test_a_teacher_that_is_the_student_teaches_nothing() -> None:
    hidden, targets, weights = batch()
    head = make({"cap": 2.5})

    def kl(hidden):
        return distilled_cross_entropy(hidden, head, Whole(hidden, head), targets, weights, 1.0)

    (total, _, divergence), pull = jax.vjp(kl, hidden)
    assert abs(total) < 1e-6
    assert abs(divergence) < 1e-6
    ones = (jnp.ones(()), jnp.zeros(()), jnp.zeros(()))
    np.testing.assert_allclose(pull(ones)[0], 0, atol=1e-6)


def test_stored_probabilities_that_add_up_to_more_than_one() -> None:
    """As rounding makes them where nearly all the mass is at the top: no tail, and no NaN."""
    hidden, targets, weights = batch(B=1, T=1)
    log_p = jnp.log(jnp.array([[[0.9, 0.11]]]))
    taught = TopK(jnp.array([[[3, 7]]], jnp.int32), log_p)
    head = make({})
    kl = distilled_cross_entropy(hidden, head, taught, targets, weights, 1.0)[2]
    log_q = jax.nn.log_softmax(logits(head, hidden))[0, 0, jnp.array([3, 7])]
    p = np.exp(log_p[0, 0]) / 1.01
    want = weights[0, 0] * (p * (np.log(p) - log_q)).sum()
    np.testing.assert_allclose(kl, want, rtol=1e-5)


@pytest.mark.parametrize("kind", ["whole", "top", "no teacher"])
def test_logits_never_exist_whole_and_a_frozen_head_costs_no_product(kind: str) -> None:
    B, T, E, V, chunk = 4, 64, 8, 1000, 16
    hidden, targets, weights = batch(B, T, E, V)
    head = make({}, E, V)
    taught: Whole | TopK = Whole(hidden, head)
    if kind == "top":
        taught = TopK(jnp.zeros((B, T, 3), jnp.int32), jnp.zeros((B, T, 3)))

    def loss(hidden: jax.Array, head: Head) -> jax.Array:
        if kind == "no teacher":
            return cross_entropy(hidden, head, targets, weights, 0.0, chunk)[0]
        operands = (hidden, head, taught, targets, weights)
        return distilled_cross_entropy(*operands, 0.5, 1.0, 0.0, chunk)[0]

    trained = jax.make_jaxpr(jax.grad(loss, (0, 1)))(hidden, head)
    frozen = jax.make_jaxpr(jax.grad(loss))(hidden, head)
    assert max(sizes(trained.jaxpr)) == max(chunk * V, E * V)
    one_less = str(trained).count("dot_general") - 1
    assert str(frozen).count("dot_general") == one_less
