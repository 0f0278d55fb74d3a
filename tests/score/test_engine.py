"""The engine's numbers against a plain computation in float64, however the work is cut."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chopjax.models import decoder
from chopjax.models.compute import Compute
from chopjax.models.config import Experts, Layer, ModelConfig, Norm, Rope
from chopjax.models.head import head_of
from chopjax.models.parameters import Params
from chopjax.score.engine import Engine
from chopjax.score.generation import Asked, generate
from chopjax.score.layout import Budget
from chopjax.score.planning import Request

LLAMA = ModelConfig(
    family="llama",
    vocab_size=61,
    embed_dim=24,
    layers=(Layer(rope=Rope()),) * 2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=40,
    max_positions=160,
    norm=Norm("rms", 1e-5),
    activation="silu",
    tie_embeddings=True,
    gated_mlp=True,
)
GPT2 = dataclasses.replace(
    LLAMA,
    family="gpt2",
    norm=Norm("layer", 1e-5, bias=True),
    activation="gelu_tanh",
    layers=(Layer(),) * 2,
    positions="learned",
    gated_mlp=False,
    qkv_bias=True,
    output_bias=True,
    mlp_bias=True,
    num_kv_heads=4,
)
EXPERTS = dataclasses.replace(LLAMA, family="mixtral", experts=Experts(4, 2, True))

BUDGET = Budget(tokens=1024, shortest=32, shape=256, shards=4)
PROMPTS = [np.arange(1, 9), np.array([3])]  # to be gone on with


def random_params(config: ModelConfig) -> Params:
    params = decoder.init(config, jax.random.key(0))
    return jax.tree.map(lambda w: w * 6 if w.ndim > 1 else w, params)


def random_requests(count: int = 24) -> list[Request]:
    """Few-shot prompts, several choices each, duplicates, long ones, one-token ones."""
    generator = np.random.default_rng(1)

    def draw(low: int, high: int) -> list[int]:
        return generator.integers(0, 61, generator.integers(low, high)).tolist()

    shots = draw(90, 91)
    found: list[Request] = []
    for number in range(count):
        context = (shots if number % 2 else []) + draw(1, 40)
        found += [(context, draw(1, 12)) for _ in range(3)]
    return [*found, *found[:5], (draw(200, 201), draw(3, 4)), ([5], draw(150, 151)), ([5], [7])]


def expected(config: ModelConfig, params: Params, requests: list[Request]) -> list[np.ndarray]:
    """Log-probabilities over the vocabulary at every scored place, float64, request by request."""
    kernel = np.asarray(head_of(params, config).kernel_EV, np.float64)
    reads = [[*c, *k][-(config.max_positions + 1) :][:-1] for c, k in requests]
    padded = np.zeros((len(reads), config.max_positions), np.int32)
    for row, read in enumerate(reads):
        padded[row, : len(read)] = read
    run = jax.jit(decoder.hidden_states, static_argnums=(1, 2))
    hidden = np.asarray(run(params, config, Compute(), jnp.asarray(padded)), np.float64)
    found = []
    for row, (read, (_, continuation)) in enumerate(zip(reads, requests, strict=True)):
        logits = hidden[row, len(read) - len(continuation) : len(read)] @ kernel
        top = logits.max(axis=-1, keepdims=True)
        found.append(logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True)))
    return found


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=lambda config: config.family)
def test_against_float64(config: ModelConfig) -> None:
    params = random_params(config)
    requests = random_requests()
    reference = expected(config, params, requests)
    engine = Engine(config, params, budget=Budget(tokens=256, shortest=32, batch=8, shape=256))
    plan = engine.plan(requests)
    assert any(batch.trunk for batch in plan.batches), "no trunk is exercised"
    scores = {score.request: score for score in engine.scores(plan)}
    for index, (logprobs, (_, continuation)) in enumerate(zip(reference, requests, strict=True)):
        picked = logprobs[np.arange(len(continuation)), continuation]
        np.testing.assert_allclose(scores[index].logprobs, picked, atol=2e-5)
        # A draw in float32 is nobody's error: only clear cases count.
        second = np.sort(logprobs, axis=-1)[:, -2:]
        clear = second[:, 1] - second[:, 0] > 1e-4
        greedy = logprobs.argmax(axis=-1) == continuation
        assert (scores[index].greedy == greedy)[clear].all()
    assert engine.statistics.programs == len(plan.shapes) + len(
        {shape.past for shape in plan.shapes if shape.past}
    )


def test_no_result_depends_on_the_packing() -> None:
    params = random_params(LLAMA)
    requests = random_requests()
    budgets = [
        Budget(tokens=256, shortest=32, batch=8, shape=256),
        Budget(tokens=8192, shortest=256),
        Budget(tokens=1, shortest=64, batch=0, shape=256),  # a row at a time
    ]
    first, *others = (Engine(LLAMA, params, budget=b).loglikelihood(requests) for b in budgets)
    backwards = Engine(LLAMA, params, budget=budgets[0]).loglikelihood(requests[::-1])[::-1]
    for other in (*others, backwards):
        for (total, greedy), (other_total, other_greedy) in zip(first, other, strict=True):
            assert abs(total - other_total) <= 1e-4
            assert greedy == other_greedy


def test_equal_logits_are_a_draw_that_the_first_token_wins() -> None:
    """As argmax decides it."""
    params = random_params(LLAMA)
    table = np.asarray(params["embed"]["embedding"]).copy()
    table[7] = table[3]
    params["embed"]["embedding"] = jnp.asarray(table)
    engine = Engine(LLAMA, params)
    winners = 0
    for start in range(61):
        three, seven = engine.loglikelihood([([start], [3]), ([start], [7])])
        assert three[0] == seven[0]
        assert not seven[1]
        winners += three[1]
    assert winners


def test_token_losses() -> None:
    params = random_params(LLAMA)
    sequence = random_requests()[0][0]
    (losses,) = Engine(LLAMA, params).token_losses([sequence])
    (logprobs,) = expected(LLAMA, params, [(sequence[:1], sequence[1:])])
    picked = logprobs[np.arange(len(sequence) - 1), sequence[1:]]
    np.testing.assert_allclose(losses, -picked, atol=2e-5)


def test_bfloat16_is_near() -> None:
    """The documented difference: of a random model, a few hundredths of a nat a token."""
    params = random_params(LLAMA)
    requests = random_requests()
    exact = Engine(LLAMA, params).loglikelihood(requests)
    half = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params)
    near = Engine(LLAMA, half, Compute(dtype="bfloat16")).loglikelihood(requests)
    each = [
        abs(a - b) / len(continuation)
        for (a, _), (b, _), (_, continuation) in zip(exact, near, requests, strict=True)
    ]
    assert 0 < np.mean(each) < 0.1


ON_EIGHT = """
import json, sys
import jax
from test_engine import BUDGET, EXPERTS, GPT2, LLAMA, PROMPTS, random_params, random_requests
from chopjax.score.drafting import Drafting, of_layers
from chopjax.score.engine import Engine
from chopjax.score.generation import Asked
from chopjax.models.mesh import make_mesh, shardings
assert len(jax.devices()) == 8
found = {}
mesh = make_mesh(data=2, fsdp=2, tensor=2)
for config in (LLAMA, GPT2, EXPERTS):
    params = jax.device_put(random_params(config), shardings(config, mesh))
    engine = Engine(config, params, mesh=mesh, budget=BUDGET)
    found[config.family] = engine.loglikelihood(random_requests())
    if config is LLAMA:
        drafting = Drafting(engine, of_layers(engine, [1]), 2)
        found["drafted"] = [one.ids for _, one in drafting.generate(PROMPTS, Asked(9))]
print(json.dumps(found))
"""


def test_no_result_depends_on_the_devices() -> None:
    here = str(Path(__file__).parent)
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": here}
    done = subprocess.run(
        [sys.executable, "-c", ON_EIGHT], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    wide = json.loads(done.stdout.splitlines()[-1])
    for config in (LLAMA, GPT2, EXPERTS):
        alone = Engine(config, random_params(config)).loglikelihood(random_requests())
        for (total, greedy), (wide_total, wide_greedy) in zip(
            alone, wide[config.family], strict=True
        ):
            assert abs(total - wide_total) <= 1e-4
            assert greedy == wide_greedy
    texts = generate(Engine(LLAMA, random_params(LLAMA)), PROMPTS, Asked(9))
    assert wide["drafted"] == [ids for _, ids in texts]
