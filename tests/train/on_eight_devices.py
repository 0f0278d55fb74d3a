"""A process with eight fake devices: the same few steps on several meshes. Prints one JSON object.

Run by test_step.py; the devices must be asked for before jax starts.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"

import jax
import numpy as np

from chopjax.models import families, mesh
from chopjax.models.config import ModelConfig
from chopjax.train import objectives, optimizer, step
from chopjax.train.settings import (
    ComputeSettings,
    DataSettings,
    OptimizerSettings,
    Settings,
)

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


def gathers_vocabulary(line: str) -> bool:
    """Whether a line of HLO gathers anything with the whole vocabulary as an axis."""
    made, *gathered = re.split(r"all-gather(?:-start)?\(", line)
    return bool(gathered) and re.search(rf"[\[,]{V}[,\]]", made) is not None


def run(data: int, fsdp: int, tensor: int, parts: int, extra: dict) -> dict:
    config = families.translate(RAW | extra)[1]
    compute = dataclasses.replace(SETTINGS.compute, microbatches=parts)
    settings = dataclasses.replace(SETTINGS, compute=compute)
    devices = jax.devices()[: data * fsdp * tensor]
    made = mesh.make_mesh(data, fsdp, tensor, devices=devices)
    with jax.set_mesh(made):
        rule = optimizer.make_optimizer(settings.optimizer, STEPS)
        params = step.abstract_params(config, settings.compute.param_dtype, made)
        abstract = step.abstract_state(params, rule, settings, made)
        if parts > 1 or config not in PARAMS:
            state = step.begin_from_scratch(config, rule, settings, abstract)
            PARAMS.setdefault(config, jax.device_get(state["params"]))
        else:  # random weights take longest to compile
            params = jax.device_put(PARAMS[config], mesh.shardings(config, made))
            state = step.begin(params, rule, settings, abstract)
        asked = step.shardings_of(abstract)
        sharded = all(jax.tree.leaves(jax.tree.map(lambda x, s: x.sharding == s, state, asked)))
        objective = objectives.next_token(config, settings)
        train_step = step.make_train_step(objective, rule, settings, abstract, {}, made)
        first = jax.device_put(batch_of(0), mesh.batch_sharding(made))
        text = train_step.lower(abstract, {}, first).compile().as_text()
        assert text is not None
        curve = []
        for number in range(STEPS):
            batch = jax.device_put(batch_of(number), mesh.batch_sharding(made))
            state, metrics = train_step(state, {}, batch)
            curve.append([float(metrics[name]) for name in ("loss", "grad_norm", "tokens")])
        eval_step = step.make_eval_step(objective, abstract["params"], {}, made)
        loss, weight = eval_step(state["params"], {}, first)
        query = state["params"]["blocks"]["attention"]["query"]
        gate = state["params"]["blocks"]["mlp"]["gate"]
        sorts = re.findall(r"= \(?s32\[(\d+)\]\S* .*sort\(", text)
        return {
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


if __name__ == "__main__":
    print(json.dumps({name: run(*arguments) for name, arguments in RUNS.items()}))
