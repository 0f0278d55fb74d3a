"""bfloat16 as bits, where loops walk over the stack of all layers on a processor."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np

from chopjax.models import decoder
from chopjax.models.bits import as_bits, of_bits, viewed_as_bits
from chopjax.models.compute import Compute
from chopjax.models.config import Layer, ModelConfig, Norm, Rope
from chopjax.models.tree_attention import Tree
from chopjax.score.engine import Engine

CONFIG = ModelConfig(
    "llama", 61, 24, (Layer(rope=Rope()),) * 5, 4, 2, 6, 40, 64, Norm("rms", 1e-5), "silu", True,
    gated_mlp=True,
)  # fmt: skip


def test_bits_are_taken_back() -> None:
    """NaNs and signed zeros, too; what is no bfloat16 stays."""
    every = np.arange(1 << 16, dtype=np.uint16).view(jnp.bfloat16)
    tree = {"half": jnp.asarray(every), "whole": jnp.arange(3.0), "codes": jnp.arange(3)}
    for bits in (as_bits(tree), viewed_as_bits(tree)):
        assert bits["half"].dtype == jnp.uint16
        assert bits["whole"].dtype == jnp.float32
        assert bits["codes"] is tree["codes"]
        again = of_bits(bits)
        assert again["half"].dtype == jnp.bfloat16
        assert np.asarray(again["half"]).tobytes() == every.tobytes()


def test_views_share_the_memory() -> None:
    half = jnp.ones((64, 64), jnp.bfloat16)
    (bits,) = viewed_as_bits([half])
    assert bits.unsafe_buffer_pointer() == half.unsafe_buffer_pointer()


def test_accelerators_have_no_bits(monkeypatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert as_bits(half := jnp.ones(3, jnp.bfloat16)) is half


def test_no_stack_becomes_float32() -> None:
    """In the program that scores rows: as it is compiled, none has the layers' axis in float32,
    and the hidden states are those of parameters that are no bits."""
    params = decoder.init(CONFIG, jax.random.key(0), jnp.bfloat16)
    engine = Engine(CONFIG, params, Compute(dtype="bfloat16"))
    engine.loglikelihood([([1, 2, 3], [4, 5])])
    (program,) = engine._programs.values()
    stacks = set(re.findall(r"(\w+)\[5,24,40\]", program.as_text()))
    assert stacks == {"u16"}

    tokens, positions = jnp.arange(12).reshape(2, 6), jnp.arange(6)[None]
    given = CONFIG, Compute(dtype="bfloat16"), tokens, positions, Tree()
    viewed = params | {"blocks": viewed_as_bits(params["blocks"])}
    hidden, fresh = decoder.extend(params, *given)
    again, of_bits_too = decoder.extend(viewed, *given)
    np.testing.assert_array_equal(hidden, again)
    jax.tree.map(np.testing.assert_array_equal, fresh, of_bits_too)
    assert fresh[0].dtype == jnp.bfloat16
