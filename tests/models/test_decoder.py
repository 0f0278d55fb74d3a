"""The decoder against transformers, in float32, on 500-token inputs."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import checkpoints
import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax.traverse_util import flatten_dict

from chopjax.models import decoder, head, parameters
from chopjax.models.compute import Compute
from chopjax.models.families import translate

LENGTH = 500
hidden_states = jax.jit(decoder.hidden_states, static_argnums=(1, 2))


def check(model: transformers.PreTrainedModel, raw: dict[str, Any]) -> None:
    config, params = checkpoints.in_memory(model, raw)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, LENGTH), dtype=np.int32)
    with torch.no_grad():
        reply = model(torch.tensor(tokens).long(), labels=torch.tensor(tokens).long())
    hidden = hidden_states(params, config, Compute(), jnp.asarray(tokens))
    logits = head.logits(head.head_of(params, config), hidden)
    assert np.abs(np.asarray(logits) - reply.logits.numpy()).max() <= 1e-4
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), tokens[:, 1:, None], axis=-1)
    assert abs(float(losses.mean()) - float(reply.loss)) <= 1e-5


@pytest.mark.parametrize(("family", "options"), families.OPTIONS, ids=str)
def test_logits_and_loss_are_those_of_transformers(family: str, options: dict[str, Any]) -> None:
    model = checkpoints.random_model(family, **options)
    check(model, json.loads(model.config.to_json_string(use_diff=False)))


@pytest.mark.parametrize("fixture", ["mix_llama", "tinystories"])
def test_real_checkpoints(fixture: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(fixture)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    check(model, json.loads((folder / "config.json").read_text()))


def tiny(family: str = "llama", **options: Any) -> tuple[Any, Any, jax.Array]:
    raw = json.loads(
        transformers.AutoConfig.for_model(
            family, **(families.SIZES[family] | options)
        ).to_json_string(use_diff=False)
    )
    _, config = translate(raw)
    params = decoder.init(config, jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 24), 0, config.vocab_size, jnp.int32)
    return config, params, tokens


@pytest.mark.parametrize("family", families.SAMPLE)
@pytest.mark.parametrize("tied", [True, False])
def test_random_parameters_have_the_layout(family: str, tied: bool) -> None:
    config, params, _ = tiny(family, tie_word_embeddings=tied)
    flat = flatten_dict(params, sep="/")
    assert {path: leaf.shape for path, leaf in flat.items()} == parameters.shapes(config)
    abstract = flatten_dict(decoder.abstract(config, jnp.bfloat16), sep="/")
    assert {path: leaf.shape for path, leaf in abstract.items()} == parameters.shapes(config)
    assert {leaf.dtype for leaf in abstract.values()} == {jnp.dtype(jnp.bfloat16)}
    query = np.asarray(flat["blocks/attention/query"])
    assert abs(query.std() - 0.02) < 0.002
    assert not np.array_equal(query[0], query[1]), "every layer draws its own weights"


def test_segments_keep_documents_apart() -> None:
    config, params, tokens = tiny()
    alone = hidden_states(params, config, Compute(), tokens[:, 10:])
    segments = jnp.asarray(np.r_[np.full(10, 1), np.full(14, 2)], jnp.int32)[None].repeat(2, 0)
    places = jnp.asarray(np.r_[np.arange(10), np.arange(14)], jnp.int32)[None].repeat(2, 0)
    packed = hidden_states(params, config, Compute(), tokens, segments, places)
    np.testing.assert_allclose(packed[:, 10:], alone, atol=2e-6)


def test_compute_dtype_is_apart_from_parameter_dtype() -> None:
    config, params, tokens = tiny()
    wide = hidden_states(params, config, Compute(), tokens)
    narrow = hidden_states(params, config, Compute(dtype="bfloat16"), tokens)
    assert wide.dtype == jnp.float32
    assert narrow.dtype == jnp.bfloat16
    assert 0 < float(jnp.abs(wide - narrow.astype(jnp.float32)).max()) < 0.1


@pytest.mark.parametrize(
    "compute",
    [
        Compute(remat="full"),
        Compute(remat="dots_except_mlp"),
        Compute(remat="dots"),
        Compute(remat="dots", layers="unrolled"),
    ],
    ids=lambda compute: f"{compute.remat}, {compute.layers}",
)
def test_how_it_is_computed_does_not_change_gradients(compute: Compute) -> None:
    config, params, tokens = tiny()

    def loss(params: Any, compute: Compute) -> jax.Array:
        return jnp.square(decoder.hidden_states(params, config, compute, tokens)).mean()

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    plain, saved = gradient(params, Compute()), gradient(params, compute)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), plain, saved)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dots_computes_no_product_twice(dtype: Any) -> None:
    """Only attention's scores, where it is XLA's: one product of its own in a block. Nor a norm's
    mean square."""
    config, params, tokens = tiny()

    def count(operation: str, remat: Any, attention: Any) -> int:
        compute = Compute(dtype, remat=remat, attention=attention)
        loss = lambda p: decoder.hidden_states(p, config, compute, tokens).sum()  # noqa: E731
        return str(jax.make_jaxpr(jax.grad(loss))(params)).count(f" {operation}")

    products = functools.partial(count, "dot_general[")
    squares = functools.partial(count, "square ", attention="blocked")
    assert squares(remat="dots") == squares(remat="none") < squares(remat="full")

    assert products("dots", "blocked") == products("none", "blocked")
    assert products("dots", "xla") == products("none", "xla") + 1
    assert products("dots_except_mlp", "blocked") == products("none", "blocked") + 2  # gate and up
    assert products("full", "blocked") > products("none", "blocked") + 6


def test_one_block_is_traced_whatever_the_depth() -> None:
    def equations(layers: int) -> int:
        config, _, tokens = tiny(num_hidden_layers=layers)
        run = jax.make_jaxpr(lambda p, t: decoder.hidden_states(p, config, Compute(), t))
        return len(str(run(decoder.abstract(config), tokens)).splitlines())

    assert equations(2) == equations(48)
