"""A chop that takes its layers out of its parent's stack is the chop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
from families import BY_LAYER, SIZES

from chopjax.chop.surgery import chop_params
from chopjax.models import adapters, decoder
from chopjax.models.adapter_settings import AdapterSettings
from chopjax.models.borrowed import Borrowed
from chopjax.models.compute import Compute
from chopjax.models.families import translate
from chopjax.models.parameters import Params

KEEP, KEY = (0, 3), jax.random.key(0)


@pytest.mark.parametrize("family", BY_LAYER)
def test_the_same_as_a_copy(family: str) -> None:
    config = translate({"model_type": family, **SIZES[family]})[1]
    params = decoder.init(config, jax.random.key(0))
    tokens_BT = jnp.asarray(np.random.default_rng(0).integers(0, 97, (2, 9)), jnp.int32)
    borrowed = params | {"blocks": Borrowed(jnp.asarray(KEEP), {}, params["blocks"])}
    kept, compute = config.keep(KEEP), Compute(remat="dots")
    found = jax.jit(lambda p: decoder.hidden_states(p, kept, compute, tokens_BT))
    want = found(chop_params(params, KEEP))
    np.testing.assert_allclose(found(borrowed), want, atol=1e-6)


def test_nothing_is_copied() -> None:
    """No array in the program, forward or back, has a kernel of the kept layers and no others."""
    config = translate({"model_type": "llama", **SIZES["llama"]})[1]
    adapter = AdapterSettings(rank=2, targets="all")
    shapes = decoder.abstract(config)
    added = jax.eval_shape(lambda key: adapters.init(config.keep(KEEP), adapter, key), KEY)

    def loss(added: Params, parent: Params, rows_L: jax.Array) -> jax.Array:
        params = adapters.attach_to_rows(parent, rows_L, added, adapter)
        tokens_BT = jnp.zeros((2, 9), jnp.int32)
        hidden = decoder.hidden_states(params, config.keep(KEEP), Compute(remat="dots"), tokens_BT)
        return hidden.sum()

    rows_L = jax.ShapeDtypeStruct((len(KEEP),), jnp.int32)
    made = set(made_in(jax.make_jaxpr(jax.grad(loss))(added, shapes, rows_L).jaxpr))
    kernels = jax.tree.leaves(shapes["blocks"]["mlp"]) + jax.tree.leaves(
        shapes["blocks"]["attention"]
    )
    assert {kernel.shape[1:] for kernel in kernels} <= made, "a layer's own"
    assert not {(len(KEEP), *kernel.shape[1:]) for kernel in kernels} & made


def made_in(jaxpr: Any) -> Iterator[tuple[int, ...]]:
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield getattr(variable.aval, "shape", ())
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from made_in(inner)
