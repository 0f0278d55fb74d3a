"""Activations of bfloat16: rounded once on processors, left to the compiler elsewhere."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chopjax.models.activations import ACTIVATIONS, activated


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_processors_round_once(name: str):
    gate, up = jax.random.normal(jax.random.key(0), (2, 4000), jnp.bfloat16)
    wide = ACTIVATIONS[name](gate.astype(jnp.float32))
    for given, expected in ((None, wide), (up, wide * up.astype(jnp.float32))):
        got = jax.jit(functools.partial(activated, name))(gate, given)
        assert got.dtype == jnp.bfloat16
        # Half a unit in the last of eight binary digits, and what two compilations differ by.
        np.testing.assert_allclose(got.astype(jnp.float32), expected, rtol=2.001**-8, atol=1e-38)


def test_accelerators_get_what_they_got(monkeypatch: pytest.MonkeyPatch):
    shape = jax.ShapeDtypeStruct((8,), jnp.bfloat16)

    def text(function) -> str:
        # Each a function of its own: jax would find the trace of the one before.
        return str(jax.make_jaxpr(lambda x, y: function(x, y))(shape, shape))

    gated = functools.partial(activated, "silu")
    plain = text(lambda x, y: jax.nn.silu(x) * y)
    assert text(gated) != plain
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert text(gated) == plain
