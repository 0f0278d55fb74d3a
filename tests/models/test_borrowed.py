"""A chop that takes its layers out of its parent's stack is the chop."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import BY_LAYER, SIZES

from chopjax.chop.surgery import chop_params
from chopjax.models import decoder
from chopjax.models.borrowed import Borrowed
from chopjax.models.compute import Compute
from chopjax.models.families import translate

KEEP = (0, 3)


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
