"""What is kept for the backward pass."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chopjax.models.remat import POLICIES, kept


def layers(x: jax.Array, kernels: jax.Array, remat: str) -> jax.Array:
    """The sum of what three layers make of x."""

    def layer(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, None]:
        y = kept(jnp.tensordot(x, kernel, 1, preferred_element_type=jnp.float32).astype(x.dtype))
        return x + jnp.tanh(y), None

    if remat != "none":
        layer = jax.checkpoint(layer, policy=POLICIES[remat], prevent_cse=False)
    return jax.lax.scan(layer, x, kernels)[0].astype(jnp.float32).sum()


def test_what_is_kept_as_bits_is_the_same_numbers() -> None:
    random = np.random.default_rng(0)
    x, kernels = (jnp.asarray(random.normal(size=s), jnp.bfloat16) for s in ((5, 4), (3, 4, 4)))
    gradients = {
        remat: jax.jit(jax.grad(layers, (0, 1)), static_argnums=2)(x, kernels, remat)
        for remat in ("none", "dots", "full")
    }
    assert np.abs(np.asarray(gradients["none"][1], np.float32)).min() > 0
    for remat in ("dots", "full"):
        jax.tree.map(np.testing.assert_array_equal, gradients[remat], gradients["none"])


@pytest.mark.parametrize("backend", ["cpu", "tpu"])
def test_what_is_kept_of_all_layers(monkeypatch, backend) -> None:
    """What comes into them, and with "dots" what is marked: on processors the bits of bfloat16."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    device = jax.sharding.AbstractDevice("", 1, backend)
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)
    x, kernels = (jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((5, 4), (3, 4, 4)))

    def stacks(remat: str) -> set[str]:
        jaxpr = jax.make_jaxpr(jax.grad(layers, (0, 1)), static_argnums=2)(x, kernels, remat)
        return set(re.findall(r"(\w+)\[3,5,4\]", str(jaxpr)))

    with jax.sharding.use_abstract_mesh(mesh):
        assert stacks("full") == {"bf16"}
        assert stacks("dots") == ({"bf16", "u16"} if backend == "cpu" else {"bf16"})
