"""A training step of a family beside torch's: the loss, and the gradient's norm, of random models.

As a script: on four devices, two of fsdp and two of tensor, for the families of ON_A_MESH.
"""

from __future__ import annotations

import json
import os
from typing import Any

if __name__ == "__main__":  # before jax starts
    os.environ["JAX_NUM_CPU_DEVICES"] = "4"

import checkpoints
import families
import jax
import jax.numpy as jnp
import numpy as np
import torch

from chopjax.models import mesh as meshes
from chopjax.train import objectives, optimizer, step
from chopjax.train.settings import ComputeSettings, DataSettings, Settings

LENGTH = 60
DRAW = 4
ON_A_MESH: dict[str, dict[str, Any]] = {
    "cohere": {"use_qk_norm": True},
    "falcon": {},
    "gemma3_text": {},
    "mpt": {"n_heads": 4},
    "olmo2": {},
    "olmoe": {},
    "phi": {},
}


def beside_torch(name: str, mesh: Any, **changes: Any) -> dict[str, list[float]]:
    """{"ours": [loss, norm], "torch": [loss, norm]}."""
    model = checkpoints.random_model(name, **(families.draw(name, DRAW) | changes))
    raw = json.loads(model.config.to_json_string(use_diff=False))
    vocab = raw["vocab_size"]
    tokens_BT = np.random.default_rng(0).integers(0, vocab, (4, LENGTH + 1), dtype=np.int32)
    reply = model(torch.tensor(tokens_BT[:, :-1]).long(), use_cache=False).logits
    targets = torch.tensor(tokens_BT[:, 1:]).long()
    loss = torch.nn.functional.cross_entropy(reply.flatten(0, 1), targets.flatten())
    loss.backward()
    squares = [w.grad.square().sum() for w in model.parameters() if w.grad is not None]
    norm = torch.stack(squares).sum().sqrt()

    config, params = checkpoints.in_memory(model, raw)
    settings = Settings(
        scratch=raw,
        data=DataSettings(batch_size=4, sequence_length=LENGTH),
        compute=ComputeSettings(dtype="float32", param_dtype="float32"),
    )
    with jax.set_mesh(mesh):
        rule = optimizer.make_optimizer(settings.optimizer, 10)
        placed = step.abstract_params(config, "float32", mesh)
        abstract = step.abstract_state(placed, rule, settings, mesh)
        params = jax.tree.map(
            lambda array, like: jax.device_put(jnp.asarray(array), like.sharding), params, placed
        )
        state = step.begin(params, rule, settings, abstract)
        objective = objectives.next_token(config, settings)
        train_step = step.make_train_step(objective, rule, settings, abstract, {}, mesh)
        places_BT = np.tile(np.arange(LENGTH, dtype=np.int32), (4, 1))
        batch = {
            "tokens": tokens_BT[:, :-1],
            "targets": tokens_BT[:, 1:],
            "segments": np.ones_like(places_BT),
            "positions": places_BT,
            "weights": np.ones_like(places_BT, np.float32),
        }
        _, metrics = train_step(state, {}, jax.device_put(batch, meshes.batch_sharding(mesh)))
    ours = [float(metrics["loss"]), float(metrics["grad_norm"])]
    return {"ours": ours, "torch": [loss.item(), norm.item()]}


if __name__ == "__main__":
    four = meshes.make_mesh(fsdp=2, tensor=2)
    found = {
        name: beside_torch(name, four, vocab_size=96, **changes)
        for name, changes in ON_A_MESH.items()
    }
    print(json.dumps(found))
