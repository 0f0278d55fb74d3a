"""What a method trains, what it only carries, and the programs that do it: one set for all seeds.

    full    all weights                     tokens in
    lora    low-rank additions              tokens in
    prefix  keys and values before prompts  tokens in
    none    nothing                         features in: what the head reads, computed once

The classifier head is trained by all of them, by `none` alone. The demonstrations, which all
prompts of a seed begin with, are computed once a batch, not once a prompt: their keys and values
are what every prompt sees, and gradients flow back through them.

Axes: B batch, C classes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from chopjax.classify import model
from chopjax.classify.model import SCORE, class_logits, last_hidden
from chopjax.classify.parts import Shown
from chopjax.classify.ways import VIRTUAL_TOKENS, HeadKind, MethodKind
from chopjax.models import adapters
from chopjax.models.adapter_settings import AdapterSettings
from chopjax.models.compute import Compute
from chopjax.models.config import ModelConfig
from chopjax.models.parameters import Params
from chopjax.train import step as steps
from chopjax.train.settings import Settings

WEIGHT_DECAY = 0.01  # torch's, of every parameter: norms and biases too


@dataclasses.dataclass(frozen=True)
class Question:
    """What a cell of the grid asks of a model, apart from its depth and the seed."""

    method: MethodKind
    head: HeadKind
    label_ids: tuple[int, ...]
    learning_rate: float
    compute: Compute
    adapter: AdapterSettings


@dataclasses.dataclass(frozen=True)
class Learner:
    """begin: (the decoder's parameters, key) → the first state, as train/step.py has it. frozen:
    (the same parameters, what all prompts begin with) → what is only read. step: (state, frozen,
    batch) → (state, metrics). logits: (trainable, frozen, batch) → [B, C] float32."""

    question: Question
    config: ModelConfig
    begin: Callable[[Params, jax.Array], steps.State]
    frozen: Callable[[Params, Shown], Any]
    step: Callable[[steps.State, Any, Any], tuple[steps.State, steps.Metrics]]
    logits: Callable[[Params, Any, Any], jax.Array]


def make_learner(config: ModelConfig, question: Question, slots: int, mesh: Mesh) -> Learner:
    """The programs of one depth, method and head. slots: what the demonstrations are padded to.
    Raises UserError for an adapter that the model cannot have."""
    logits = functools.partial(_logits, config=config, question=question)
    settings = Settings()  # of which a step reads what is off by default alone
    optimizer = optax.adamw(question.learning_rate, weight_decay=WEIGHT_DECAY)

    def objective(
        trainable: Params, frozen: Any, batch: steps.Batch
    ) -> tuple[jax.Array, steps.Metrics]:
        losses_B = optax.softmax_cross_entropy_with_integer_labels(
            logits(trainable, frozen, batch), batch["labels"]
        )
        loss = jnp.sum(losses_B * batch["weights"])
        return loss, {"loss": loss}

    divide = functools.partial(_trainable, config=config, question=question)
    floats = steps.abstract_params(config, "float32", mesh)
    before = Shown(np.zeros((1, slots), np.int32), np.int32(0))
    shapes = jax.eval_shape(
        lambda params, key: (divide(params, key), _frozen(params, before, question)),
        floats,
        jax.random.key(0),
    )
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    trainable, frozen = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), shapes
    )
    abstract = steps.abstract_state(trainable, optimizer, settings, mesh)

    @jax.jit
    def begin(params: Params, key: jax.Array) -> steps.State:
        own = divide(params, key)
        # Copies: the step takes its state's memory, and these are the parent's parameters.
        return steps.initial_state(jax.tree.map(jnp.copy, own), optimizer, settings)

    return Learner(
        question,
        config,
        begin,
        functools.partial(_frozen, question=question),
        steps.make_train_step(objective, optimizer, settings, abstract, frozen, mesh),
        jax.jit(logits),
    )


def _trainable(params: Params, key: jax.Array, config: ModelConfig, question: Question) -> Params:
    """What is trained, of a decoder's parameters or beside them."""
    own, of_score = jax.random.split(key)
    trainable: Params = {}
    if question.method == "full":
        trainable = dict(params)
        if question.head == "classifier":  # a head of its own, and not the model's
            trainable |= {"head": _without_kernel(params["head"])} if "head" in params else {}
    elif question.method == "lora":
        trainable = adapters.init(config, question.adapter, own)
    elif question.method == "prefix":
        trainable = {"prefix": model.init_prefix(config, VIRTUAL_TOKENS, own)}
    if question.head == "classifier":
        score = model.init_score(config, len(question.label_ids), of_score)
        trainable = trainable | {SCORE: score}
    return trainable


def _frozen(params: Params, before: Shown, question: Question) -> Any:
    base = {} if question.method == "full" else {"base": params}
    return base if question.method == "none" else base | {"before": before}


def _without_kernel(head: Params) -> Params:
    """OPT's projection before the head stays, which the classifier reads, too."""
    return {name: leaf for name, leaf in head.items() if name not in ("kernel", "bias")}


def _decoder(
    trainable: Params, frozen: Any, question: Question, batch: dict[str, Any] | None = None
) -> Params:
    """The decoder's parameters, adapters among them."""
    if question.method in ("full", "lora"):
        return adapters.student(trainable, frozen, batch or {}, question.adapter)
    base: Params = frozen["base"]
    return base


def _logits(
    trainable: Params,
    frozen: Any,
    batch: steps.Batch,
    config: ModelConfig,
    question: Question,
) -> jax.Array:
    """[B, C]."""
    params = _decoder(trainable, frozen, question, batch)
    if question.method == "none":
        hidden_BE = batch["features"].astype(question.compute.dtype)
    else:
        prefix = None
        if question.method == "prefix":
            prefix = model.prefix_past(trainable["prefix"], question.compute)
        tokens_1S, length = frozen["before"]
        past = model.read_past(params, config, question.compute, tokens_1S, length, prefix)
        hidden_BE = last_hidden(params, config, question.compute, batch, past)
    return class_logits(params, trainable.get(SCORE), config, question.label_ids, hidden_BE)


def count(trainable: Params) -> int:
    """How many numbers are trained."""
    return sum(leaf.size for leaf in jax.tree.leaves(trainable))


def adapter_of(method: MethodKind, rank: int, targets: str) -> AdapterSettings:
    """Deeper Layers' choice of alpha: what is added is scaled by 1."""
    if method != "lora":
        return AdapterSettings()
    return AdapterSettings(rank=rank, alpha=rank, targets=targets)
