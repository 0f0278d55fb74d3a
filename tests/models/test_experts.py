"""A feed-forward of experts beside a loop over them, and what its pieces are."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import struct

from chopjax.models import decoder, parameters
from chopjax.models.compute import Compute
from chopjax.models.config import Experts, Layer, ModelConfig, Norm, Rope
from chopjax.models.experts import feed_forward, route, spread, summed

D, F, B, T = 8, 12, 2, 5
CONFIG = ModelConfig(
    "olmoe", 31, D, (Layer(rope=Rope()),) * 3, 2, 2, 4, F, 32, Norm("rms", 1e-5), "silu", True,
    gated_mlp=True, experts=Experts(6, 2, False),
)  # fmt: skip


def of(experts: Experts) -> tuple[ModelConfig, dict[str, jax.Array]]:
    """A configuration, and one layer's feed-forward of it with weights of about one."""
    config = dataclasses.replace(CONFIG, experts=experts)
    params = decoder.init(config, jax.random.key(0))
    return config, {name: 50 * kernel[0] for name, kernel in params["blocks"]["mlp"].items()}


run = jax.jit(feed_forward, static_argnums=1)


def in_torch(array: jax.Array) -> torch.Tensor:
    return torch.tensor(np.array(array, np.float32), requires_grad=True)


def one_by_one(mlp: dict[str, torch.Tensor], experts: Experts, x_BTD: torch.Tensor) -> torch.Tensor:
    """Every expert on every token, those that a token does not take weighted with nothing."""
    share_BTX = (x_BTD @ mlp["router"]).softmax(-1)
    least_BT1 = share_BTX.sort(-1).values[..., -experts.per_token, None]
    weight_BTX = torch.where(share_BTX >= least_BT1, share_BTX, 0)
    if experts.renormalise:
        weight_BTX = weight_BTX / weight_BTX.sum(-1, keepdim=True)
    y_BTD = torch.zeros_like(x_BTD)
    for number in range(experts.count):
        gate_BTF = torch.nn.functional.silu(x_BTD @ mlp["gate"][number])
        inner_BTF = gate_BTF * (x_BTD @ mlp["up"][number])
        y_BTD = y_BTD + weight_BTX[..., number, None] * (inner_BTF @ mlp["down"][number])
    return y_BTD


@pytest.mark.parametrize(
    "experts",
    [
        Experts(6, 2, False),
        Experts(6, 3, True),
        Experts(1, 1, True),
        Experts(40, 2, False),  # most have no token
        Experts(3, 3, False),
    ],
)
def test_value_and_gradients_are_those_of_a_loop(experts: Experts) -> None:
    config, mlp = of(experts)
    x_BTD, d_BTD = (jax.random.normal(jax.random.key(n), (B, T, D)) for n in (1, 2))

    @jax.jit
    def mine(mlp: dict[str, jax.Array], x_BTD: jax.Array) -> Any:
        with jax.default_matmul_precision("highest"):
            y_BTD, back = jax.vjp(lambda m, x: feed_forward(m, config, x), mlp, x_BTD)
        return y_BTD, *back(d_BTD)

    got, got_mlp, got_x = mine(mlp, x_BTD)
    theirs, x = {name: in_torch(kernel) for name, kernel in mlp.items()}, in_torch(x_BTD)
    want = one_by_one(theirs, experts, x)
    want.backward(torch.tensor(np.array(d_BTD)))
    pairs = [(got, want), (got_x, x.grad), *((got_mlp[name], theirs[name].grad) for name in mlp)]
    for mine_, other in pairs:
        assert other is not None
        b = other.detach().numpy()
        np.testing.assert_allclose(mine_, b, atol=1e-5 * max(1.0, float(np.abs(b).max())))


def test_bfloat16_routes_in_float32() -> None:
    """Its result is near float32's, whose experts it takes."""
    config, mlp = of(Experts(6, 2, False))
    x_BTD = jax.random.normal(jax.random.key(1), (B, T, D)).astype(jnp.bfloat16)
    got = run(mlp, config, x_BTD)
    theirs = {name: in_torch(kernel) for name, kernel in mlp.items()}
    want = one_by_one(theirs, Experts(6, 2, False), in_torch(x_BTD)).detach().numpy()
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), want, atol=0.03 * float(want.max()))


def test_routing() -> None:
    logits_MX = jnp.log(jnp.array([[1.0, 4.0, 2.0, 1.0], [5.0, 1.0, 1.0, 3.0]]))
    choice_MC, weight_MC = route(logits_MX, Experts(4, 2, False))
    assert choice_MC.tolist() == [[1, 2], [0, 3]]
    np.testing.assert_allclose(weight_MC, [[0.5, 0.25], [0.5, 0.3]], rtol=1e-6)
    _, weight_MC = route(logits_MX, Experts(4, 2, True))
    np.testing.assert_allclose(weight_MC, [[2 / 3, 1 / 3], [0.625, 0.375]], rtol=1e-6)


@pytest.mark.parametrize("times", [1, 3])
def test_sorting_and_its_derivative_without_a_scatter(times: int) -> None:
    random = np.random.default_rng(0)
    x_MD = jnp.asarray(random.normal(size=(4, D)), jnp.float32)
    order_R = jnp.asarray(random.permutation(4 * times))
    place_R = jnp.argsort(order_R)
    sorted_RD, back = jax.vjp(lambda x: spread(x, order_R, place_R, times), x_MD)
    want_RD, wanted_back = jax.vjp(lambda x: jnp.repeat(x, times, axis=0)[order_R], x_MD)
    np.testing.assert_array_equal(sorted_RD, want_RD)
    d_RD = jnp.asarray(random.normal(size=want_RD.shape), jnp.float32)
    np.testing.assert_allclose(back(d_RD)[0], wanted_back(d_RD)[0], rtol=1e-5)
    np.testing.assert_allclose(summed(sorted_RD, order_R, place_R, times), times * x_MD, rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda x: spread(x, order_R, place_R, times).sum()))
    assert "scatter" not in gradient.lower(x_MD).as_text()


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_recomputation_changes_no_gradient(remat: Any) -> None:
    params = decoder.init(CONFIG, jax.random.key(0))
    tokens = jnp.arange(12).reshape(2, 6)

    def gradient(remat: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            hidden = decoder.hidden_states(params, CONFIG, Compute(remat=remat), tokens)
            return jnp.cos(hidden).mean()

        return jax.jit(jax.grad(loss))(params)

    for a, b in zip(
        jax.tree.leaves(gradient(remat)), jax.tree.leaves(gradient("none")), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_active_parameters() -> None:
    """All but the experts that a token is not sent to; the router is met whole."""
    whole, active = (parameters.count(CONFIG, active=which) for which in (False, True))
    assert whole - active == 3 * 4 * 3 * D * F
    per_layer = parameters.count_per_layer(CONFIG, active=True)
    assert per_layer == 4 * D * D + 2 * D + D * 6 + 2 * 3 * D * F


@struct.dataclass
class Node:
    """A WeightNode of whatever kind."""

    array: jax.Array

    def product(self, x: jax.Array, contracted: int) -> jax.Array:
        return jnp.tensordot(x, self.array, contracted)

    def kernel(self, dtype: jnp.dtype) -> jax.Array:
        return self.array.astype(dtype)


def test_weight_nodes_stand_for_arrays() -> None:
    config, mlp = of(Experts(6, 2, False))
    x_BTD = jax.random.normal(jax.random.key(1), (B, T, D))
    plain = run(mlp, config, x_BTD)
    same = run(mlp | {"up": Node(mlp["up"])}, config, x_BTD)
    np.testing.assert_allclose(same, plain, atol=1e-6)
    routed = run(mlp | {"router": Node(mlp["router"])}, config, x_BTD)
    np.testing.assert_allclose(routed, plain, atol=1e-4)
