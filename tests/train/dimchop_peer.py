"""DimCHOP in plain torch, on transformers' models, written from the papers' formulas (arXiv
2305.14864, 2206.12562).

A matrix is the weight of a linear map of a block, [out, in]; GPT-2's Conv1D is transposed first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import checkpoints
import torch
from sparse_peers import matrices
from transformers.pytorch_utils import Conv1D

from chopjax.train.dimchop_settings import DimChopSettings

RATE, DECAY, BETAS = 3e-3, 0.1, (0.9, 0.95)


def train(model: Any, batches: Sequence[Any], settings: DimChopSettings) -> dict[str, Any]:
    """In place, with AdamW. batches: tokens [B, T + 1]. Returns {"losses": one a step, "scores":
    name → S, "zero": name → which columns, after each step}."""
    blocks, stack = checkpoints.blocks_of(model)
    found = {
        f"{layer}.{name}": module
        for layer, block in enumerate(getattr(blocks, stack))
        for name, module in matrices(block).items()
    }
    named = dict(model.named_parameters())
    plain = [
        w for name, w in named.items() if name.endswith("bias") or "norm" in name or "ln_" in name
    ]
    others = [w for w in named.values() if not any(w is each for each in plain)]
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": others, "weight_decay": DECAY}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS)
    window, mean, unsure = (
        {
            name: torch.zeros_like(_out_by_in(module, module.weight))
            for name, module in found.items()
        }
        for _ in range(3)
    )
    losses, zero = [], []
    for step, tokens in enumerate(batches, 1):
        logits = model(tokens[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        for name, module in found.items():
            weight, gradient = (_out_by_in(module, w) for w in (module.weight, module.weight.grad))
            window[name] += (weight * gradient).abs() / settings.interval
            if step % settings.interval == 0:
                mean[name] = settings.beta1 * mean[name] + (1 - settings.beta1) * window[name]
                far = (window[name] - mean[name]).abs()
                unsure[name] = settings.beta2 * unsure[name] + (1 - settings.beta2) * far
                window[name] = torch.zeros_like(weight)
            if step % settings.interval == 0 or step >= settings.end:
                along = 0 if settings.columns == "input" else 1
                scores = (mean[name] * unsure[name]).sum(along)
                count = round(len(scores) * _share(settings, step))
                gone = torch.sort(scores, stable=True).indices[:count]
                weight.index_fill_(1 - along, gone, 0)
        zero.append({name: _zero(module, settings.columns) for name, module in found.items()})
    return {
        "losses": losses,
        "scores": {name: mean[name] * unsure[name] for name in found},
        "zero": zero,
    }


def _share(settings: DimChopSettings, step: int) -> float:
    """1 - PLATON's remaining ratio r(t), which falls from 1 to 1 - final."""
    if step <= settings.start:
        return 0.0
    if step >= settings.end:
        return settings.final
    left = 1 - (step - settings.start) / (settings.end - settings.start)
    last = 1 - settings.final
    return 1 - (last + (1 - last) * left**3)


def _out_by_in(module: Any, weight: torch.Tensor) -> torch.Tensor:
    """A view of the same numbers."""
    return weight.detach().T if isinstance(module, Conv1D) else weight.detach()


def _zero(module: Any, columns: str) -> torch.Tensor:
    return (_out_by_in(module, module.weight) == 0).all(0 if columns == "input" else 1)
