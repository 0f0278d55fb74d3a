"""What a GPU or a TPU would get is well-formed: the programs are lowered for both, without either.

The device's own attention is among it: splash, and cuDNN, for which jax would ask the GPU, and is
answered for it.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from chopjax.models import decoder
from chopjax.models import mesh as meshes
from chopjax.models.adapter_settings import AdapterSettings
from chopjax.models.compute import Compute
from chopjax.models.config import Layer, ModelConfig
from chopjax.models.families import translate
from chopjax.plan.gpus import answer_for_the_gpu
from chopjax.score.engine import Engine
from chopjax.score.generation import Asked, generate
from chopjax.score.layout import Budget
from chopjax.score.steps import STRIDE
from chopjax.train import step as steps
from chopjax.train.optimizer import make_optimizer
from chopjax.train.settings import ComputeSettings, DataSettings, OptimizerSettings, Settings
from chopjax.train.task import task_of

BACKENDS = {"cuda": "gpu", "tpu": "tpu"}  # platform → what jax.default_backend() says there
CUDNN = ("__cudnn$fmhaSoftmax", "__cudnn$fmhaScaleBiasSoftmax")
# Which documents a token sees is a bias to cuDNN.
CALLS = {
    "tpu": {"tpu_custom_call"},
    "cuda": {
        "cu_threefry2x32_ffi",
        *CUDNN,
        "__cudnn$fmhaScaleBiasSoftmaxBackward",
    },
}
OWN = {"tpu": ("splash", "tpu_custom_call"), "cuda": ("cudnn", CUDNN[1])}
# With a window in every other layer, and grouped heads.
CONFIG = translate(
    {
        "model_type": "gemma3_text",
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 128,
        "sliding_window": 32,
        "layer_types": ["sliding_attention", "full_attention"],
        "max_position_embeddings": 256,
    }
)[1]


@pytest.fixture(params=BACKENDS)
def platform(request, monkeypatch) -> str:
    """One of both; chopjax believes that it is there."""
    monkeypatch.setattr(jax, "default_backend", lambda: BACKENDS[request.param])
    for asked in ("check_cudnn_version", "check_compute_capability"):  # to be as they were
        monkeypatch.setattr(cudnn, asked, getattr(cudnn, asked))
    answer_for_the_gpu()
    return request.param


def lowered(traced: Any, platform: str) -> str:
    """The program's text. Calls of what is not XLA's own are the platform's."""
    program = traced.lower(lowering_platforms=(platform,))
    assert program.compiler_ir("stablehlo").operation.verify()
    text = program.as_text()
    calls = set(re.findall(r"custom_call @([\w$.]+)", text))
    assert calls <= {"Sharding", *CALLS[platform]}
    return text


@pytest.mark.parametrize(
    "adapter",
    [AdapterSettings(), AdapterSettings(rank=2, dropout=0.1, base="nf4")],
    ids=["all weights", "QLoRA"],
)
def test_a_training_step(platform, adapter):
    own, call = OWN[platform]
    for attention in ("xla", own):
        text = lowered(traced_step(attention, adapter), platform)
        assert (call in text) == (attention == own)
        assert "bf16" in text


def traced_step(attention: Any, adapter: AdapterSettings) -> Any:
    settings = Settings(
        data=DataSettings(batch_size=2, sequence_length=128, mask_documents=True),
        adapter=adapter,
        compute=ComputeSettings(dtype="bfloat16", param_dtype="bfloat16", attention=attention),
        optimizer=OptimizerSettings(name="adamw", momentum_dtype="bfloat16"),
    )
    mesh = meshes.make_mesh()
    with jax.set_mesh(mesh):
        task = task_of(CONFIG, settings, mesh)
        optimizer = make_optimizer(settings.optimizer, settings.total_steps)
        abstract = steps.abstract_state(task.trainable, optimizer, settings, mesh)
        step = steps.make_train_step(
            task.objective, optimizer, settings, abstract, task.frozen, mesh
        )
        return step.trace(abstract, task.frozen, steps.abstract_batch(settings, mesh))


class Lowering(Engine):
    """Lowers programs for a platform, and answers zeros in place of running them."""

    platform = ""

    def program(self, function, key, arguments, static, donate=None):
        jitted = jax.jit(function, static_argnames=tuple(static), donate_argnames=donate)
        text = lowered(jitted.trace(*arguments, **static), self.platform)
        self.texts = {**getattr(self, "texts", {}), function.__name__: text}
        shapes = jax.eval_shape(functools.partial(function, **static), *arguments)
        return jax.tree.map(lambda shape: np.zeros(shape.shape, shape.dtype), shapes)


def engine_of(config: ModelConfig, platform: str) -> Lowering:
    params = jax.tree.map(
        lambda shape: np.zeros(shape.shape, shape.dtype), decoder.abstract(config, jnp.bfloat16)
    )
    # A trunk pays with few requests.
    budget = Budget(tokens=1024, shortest=128, batch=1, shape=1)
    made = Lowering(config, params, Compute(dtype="bfloat16"), budget=budget)
    made.platform = platform
    return made


@pytest.fixture
def engine(platform) -> Lowering:
    return engine_of(CONFIG, platform)


def score(engine: Lowering) -> dict[str, str]:
    """Rows, and a trunk that many requests begin with."""
    trunk = list(range(1, 91)) * 2
    requests = [([*trunk, n, n], [n, 1, 2]) for n in range(40)]
    engine.loglikelihood([(np.array(c), np.array(t)) for c, t in requests])
    assert set(engine.texts) == {"_score_rows", "_read_trunk"}
    return engine.texts


def test_scoring(engine):
    """Windows: no kernel takes them."""
    assert not any("custom_call @" in text for text in score(engine).values())


def test_scoring_with_kernels(platform):
    """Trees behind a trunk, and plain text. To cuDNN, a tree is a bias."""
    # Of different depths, so that jax does not find what it traced for the other platform.
    layers = (Layer(),) * (2 if platform == "tpu" else 3)
    texts = score(engine_of(dataclasses.replace(CONFIG, layers=layers), platform))
    tpu = "tpu_custom_call"
    trunk, rows = {"tpu": (tpu, tpu), "cuda": CUDNN}[platform]
    assert f"@{trunk}(" in texts["_read_trunk"]
    assert f"@{rows}(" in texts["_score_rows"]


def test_generation(engine):
    prompts = [np.arange(1, 9), np.arange(3, 20)]
    found = dict(generate(engine, prompts, Asked(STRIDE)))
    assert {len(ids) for ids in found.values()} == {STRIDE}
    assert set(engine.texts) == {"prefill", "decode"}
