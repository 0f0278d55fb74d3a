"""A process with eight fake devices: the same few steps on several meshes. Prints one JSON object.

Run by test_step.py; the devices must be asked for before jax starts.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"

import jax
import numpy as np

from chopjax.models import families, mesh
from chopjax.models.config import ModelConfig
from chopjax.train import gather as gathering
from chopjax.train import optimizer, step
from chopjax.train.after_chop import Gather
from chopjax.train.dimchop_settings import DimChopSettings
from chopjax.train.settings import (
    ComputeSettings,
    DataSettings,
    OptimizerSettings,
    Settings,
    TeacherSettings,
)
from chopjax.train.task import task_of
from chopjax.train.teacher import Teacher

STEPS, B, T, V = 3, 16, 12, 96
RAW = {
    "model_type": "llama",
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,  # stays whole on a tensor axis of 4
    "max_position_embeddings": 32,
    "tie_word_embeddings": True,
}
SETTINGS = Settings(
    scratch=RAW,
    data=DataSettings(batch_size=B, sequence_length=T, mask_documents=True),
    optimizer=OptimizerSettings(name="adamw", peak_learning_rate=1e-2, z_loss=1e-3),
    compute=ComputeSettings(loss_chunk=5),
)
UNEVEN = {"vocab_size": V + 1, "tie_word_embeddings": False}
EXPERTS = {"model_type": "olmoe", "num_experts": 6, "num_experts_per_tok": 2}
# A deeper and wider teacher, whose layers 0 and 3 teach: all terms, and maps between the widths.
TAUGHT: dict[str, Any] = {
    "hidden": 0.5,
    "attention": 0.5,
    "embedding": 0.5,
    "logits": 0.5,
    "temperature": 2.0,
}
WIDE = {"hidden_size": 48, "num_attention_heads": 4, "num_hidden_layers": 4}
# name → data, fsdp, tensor, microbatches, extra keys of config.json
RUNS: dict[str, tuple[int, int, int, int, dict]] = {
    "one device": (1, 1, 1, 1, {}),
    "data": (8, 1, 1, 1, {}),
    "fsdp": (1, 8, 1, 1, {}),
    "all": (2, 2, 2, 2, {}),
    "kv heads whole": (1, 2, 4, 1, {}),
    "vocabulary whole": (2, 2, 2, 1, UNEVEN),
    "vocabulary whole, one device": (1, 1, 1, 1, UNEVEN),
    "experts, one device": (1, 1, 1, 1, EXPERTS),
    "experts": (2, 2, 2, 1, EXPERTS),
    "teacher and DimCHOP, one device": (1, 1, 1, 1, {}),
    "teacher and DimCHOP": (2, 2, 2, 2, {}),
}


def batch_of(number: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(number)
    tokens = random.integers(0, V, (B, T + 1)).astype(np.int32)
    segments = np.repeat(np.array([[1, 2]], np.int32), T // 2, axis=1).repeat(B, axis=0)
    positions = np.tile(np.arange(T // 2, dtype=np.int32), (B, 2))
    weights = (random.random((B, T)) < 0.9).astype(np.float32)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segments": segments,
        "positions": positions,
        "weights": weights,
    }


PARAMS: dict[ModelConfig, dict] = {}  # the parameters that the first run began with


def random_frozen(abstract: dict) -> dict:
    """What a task only reads, the same on every mesh."""
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jax.device_put(
            random.normal(size=leaf.shape).astype(leaf.dtype) / 8, leaf.sharding
        ),
        abstract,
    )


def gathers_vocabulary(line: str) -> bool:
    """Whether a line of HLO gathers anything with the whole vocabulary as an axis."""
    made, *gathered = re.split(r"all-gather(?:-start)?\(", line)
    return bool(gathered) and re.search(rf"[\[,]{V}[,\]]", made) is not None


def run(name: str, data: int, fsdp: int, tensor: int, parts: int, extra: dict) -> dict:
    config = families.translate(RAW | extra)[1]
    when: Gather = "step" if name == "all" else "layer"
    compute = dataclasses.replace(SETTINGS.compute, microbatches=parts, gather=when)
    settings = dataclasses.replace(SETTINGS, compute=compute)
    teacher = None
    if name.startswith("teacher"):
        settings = dataclasses.replace(settings, teacher=TeacherSettings(model="t", **TAUGHT))
        teacher = Teacher("t", None, RAW | WIDE, None, (0, 3), {})
    if "DimCHOP" in name:
        settings = dataclasses.replace(settings, dimchop=DimChopSettings(0.5, 0, 2, 1))
    devices = jax.devices()[: data * fsdp * tensor]
    made = mesh.make_mesh(data, fsdp, tensor, devices=devices)
    with jax.set_mesh(made):
        rule = optimizer.make_optimizer(settings.optimizer, STEPS)
        task = task_of(config, settings, made, teacher)
        abstract = step.abstract_state(task.trainable, rule, settings, made)
        if config not in PARAMS or (parts > 1 and not teacher):
            state = step.begin_from_scratch(config, rule, settings, abstract, task.fresh)
            PARAMS.setdefault(config, jax.device_get(state["params"]))
        else:  # random weights take longest to compile
            params = jax.device_put(PARAMS[config], mesh.shardings(config, made))
            state = step.begin(params, rule, settings, abstract, task.fresh)
        frozen = random_frozen(task.frozen)
        asked = step.shardings_of(abstract)
        sharded = all(jax.tree.leaves(jax.tree.map(lambda x, s: x.sharding == s, state, asked)))
        train_step = step.make_train_step(
            task.objective, rule, settings, abstract, task.frozen, made, task.matrices
        )
        first = jax.device_put(batch_of(0), mesh.batch_sharding(made))
        compiled = train_step.lower(abstract, task.frozen, first).compile()
        text = compiled.as_text()
        assert text is not None
        curve = []
        for number in range(STEPS):
            batch = jax.device_put(batch_of(number), mesh.batch_sharding(made))
            state, metrics = compiled(state, frozen, batch)
            curve.append([float(metrics[name]) for name in sorted(metrics)])
        eval_step = step.make_eval_step(task.held_out, task.trainable, task.frozen, made)
        loss, weight = eval_step(state["params"], frozen, first)
        query = state["params"]["blocks"]["attention"]["query"]
        gate = state["params"]["blocks"]["mlp"]["gate"]
        sorts = re.findall(r"= \(?s32\[(\d+)\]\S* .*sort\(", text)
        found = {
            "curve": curve,
            "evaluation": [float(loss), float(weight)],
            "born sharded": sharded,
            "query shard": list(query.addressable_shards[0].data.shape),
            "gate shard": list(gate.addressable_shards[0].data.shape),
            "longest sort": max(map(int, sorts), default=0),
            "whole batch gathered": any(
                "all-gather" in line and f"= f32[{B},{T}," in line for line in text.splitlines()
            ),
            "vocabulary gathered": tensor > 1 and any(map(gathers_vocabulary, text.splitlines())),
            "whole logits": f"f32[{B},{T},{V}]" in text or f"f32[{B * T},{V}]" in text,
        }
        if name == "all":
            where = step.shardings_of(abstract["params"])
            gather = jax.jit(lambda params: gathering.gathered(params, where, "bfloat16"))
            blocks = gather(state["params"])["blocks"]
            gathered = blocks["mlp"]["gate"]
            shape = gathered.addressable_shards[0].data.shape
            found["gate, gathered"] = [*shape, str(gathered.dtype)]
            found["norm, gathered"] = str(blocks["mlp_norm"]["scale"].dtype)
        return found


if __name__ == "__main__":
    print(json.dumps({name: run(name, *arguments) for name, arguments in RUNS.items()}))
