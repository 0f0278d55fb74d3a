"""Adapters beside peft's: loss and every gradient, in every kind of family."""

from __future__ import annotations

import json
from typing import Any

import checkpoints
import families
import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from flax.traverse_util import flatten_dict, unflatten_dict

from chopjax.models import adapter_settings, adapters, decoder, parameters
from chopjax.models.adapter_settings import AdapterSettings
from chopjax.models.compute import Compute
from chopjax.models.head import head_of
from chopjax.models.loss import cross_entropy

LENGTH = 48
# What peft calls the matrices of a block.
MODULES = {
    "llama": {"gate": "gate_proj", "up": "up_proj", "down": "down_proj", "query": "q_proj"},
    "gpt2": {"up": "mlp.c_fc", "down": "mlp.c_proj"},
    "opt": {"up": "fc1", "down": "fc2", "key": "k_proj", "output": "out_proj"},
    "phi": {"up": "mlp.fc1", "down": "mlp.fc2", "output": "dense"},
}


def loss_of(params: Any, config: Any, tokens_BT: np.ndarray) -> jax.Array:
    tokens = jnp.asarray(tokens_BT[:, :-1])
    hidden = decoder.hidden_states(params, config, Compute(remat="dots"), tokens)
    weights = jnp.full(tokens_BT[:, 1:].shape, 1 / tokens_BT[:, 1:].size)
    return cross_entropy(hidden, head_of(params, config), tokens_BT[:, 1:], weights)[0]


@pytest.mark.parametrize("family", MODULES)
def test_loss_and_gradients_are_peft_s(family: str) -> None:
    model = checkpoints.random_model(family, **families.draw(family, 0))
    raw = json.loads(model.config.to_json_string(use_diff=False))
    config, base = checkpoints.in_memory(model, raw)
    base = jax.tree.map(jnp.asarray, base)
    settings = AdapterSettings(rank=3, alpha=6.0, targets=",".join(MODULES[family]))
    shapes = adapter_settings.shapes(config, settings)
    random = np.random.default_rng(0)
    flat = {path: random.normal(0, 0.3, shape).astype(np.float32) for path, shape in shapes.items()}

    theirs = peft.get_peft_model(
        model,
        peft.LoraConfig(
            r=3,
            lora_alpha=6,
            target_modules=list(MODULES[family].values()),
            fan_in_fan_out=family == "gpt2",
        ),
    )
    names = {value: key for key, value in MODULES[family].items()}
    matrices = []
    for name, weight in theirs.named_parameters():
        if ".lora_" not in name:
            continue
        module, kind = name.split(".lora_")
        ours = next(key for suffix, key in names.items() if module.endswith("." + suffix))
        layer = next(int(part) for part in name.split(".") if part.isdigit())
        path = f"blocks/{parameters.KERNELS[ours]}/{ours}/{kind[0].lower()}"
        value = flat[path][layer]
        rank = 3
        matrix = value.reshape(-1, rank).T if kind[0] == "A" else value.reshape(rank, -1).T
        weight.data = torch.tensor(np.ascontiguousarray(matrix))
        matrices.append((path, layer, weight))
    assert {path for path, _, _ in matrices} == set(flat)
    tokens_BT = random.integers(0, config.vocab_size, (2, LENGTH + 1)).astype(np.int32)
    logits = theirs(torch.tensor(tokens_BT[:, :-1]).long(), use_cache=False).logits
    targets = torch.tensor(tokens_BT[:, 1:]).long()
    want = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    want.backward()

    def loss(trainable: Any) -> jax.Array:
        params = adapters.attach(base, trainable, settings)
        return loss_of(params, config, tokens_BT)

    got, gradient = jax.jit(jax.value_and_grad(loss))(unflatten_dict(flat, sep="/"))
    assert float(got) == pytest.approx(want.item(), abs=1e-5)
    flat_gradient = flatten_dict(gradient, sep="/")
    for path, layer, weight in matrices:
        ours_LR = np.asarray(flat_gradient[path][layer])
        matrix = ours_LR.reshape(-1, 3).T if path.endswith("/a") else ours_LR.reshape(3, -1).T
        assert weight.grad is not None
        np.testing.assert_allclose(matrix, weight.grad.numpy(), atol=1e-5, err_msg=path)
        assert np.abs(matrix).max() > 1e-4
