"""Magnitude, Wanda and SparseGPT in plain torch, on transformers' models, in float64.

Written from the papers (arXiv 2306.11695, 2301.00774). A matrix is [out, in]; GPT-2's Conv1D is
transposed first. What a layer reads is recorded while the whole model runs, one layer after the
other: slow, and simple.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import checkpoints
import torch
from transformers.pytorch_utils import Conv1D

BLOCK, DAMPENING = 128, 0.01


def rows(batches: Any) -> list[list[int]]:
    """The real tokens of each row."""
    return [
        ids[:length].tolist()
        for batch in batches
        for ids, length in zip(batch.tokens_BT, batch.lengths_B, strict=True)
        if length
    ]


def torch_loss(model: Any, sequences: list[list[int]]) -> float:
    """Nats per predicted token."""
    total, count = 0.0, 0
    for ids in sequences:
        with torch.no_grad():
            logits = model(torch.tensor([ids[:-1]]), use_cache=False).logits[0]
        target = torch.tensor(ids[1:])
        total += float(torch.nn.functional.cross_entropy(logits, target, reduction="sum"))
        count += len(target)
    return total / count


def smallest(score: torch.Tensor, count: int) -> torch.Tensor:
    """Bool: so many of the smallest, of the last axis."""
    order = torch.sort(score, dim=-1, stable=True).indices[..., :count]
    return torch.zeros_like(score, dtype=torch.bool).scatter_(-1, order, True)


def in_groups(score: torch.Tensor, zeros: int, group: int) -> torch.Tensor:
    return smallest(score.unflatten(-1, (-1, group)), zeros).flatten(-2)


def magnitude(weight: torch.Tensor, pattern: str) -> torch.Tensor:
    if ":" in pattern:
        return in_groups(weight.abs(), *map(int, pattern.split(":")))
    count = int(weight.numel() * float(pattern))
    return smallest(weight.abs().flatten(), count).view_as(weight)


def wanda(weight: torch.Tensor, x: torch.Tensor, pattern: str) -> torch.Tensor:
    """x: [tokens, in]."""
    score = weight.abs() * x.norm(dim=0)
    if ":" in pattern:
        return in_groups(score, *map(int, pattern.split(":")))
    return smallest(score, int(weight.shape[1] * float(pattern)))


def sparsegpt(
    weight: torch.Tensor, x: torch.Tensor, pattern: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The new weights, and which of them are zeros."""
    weight, width = weight.clone(), weight.shape[1]
    hessian = 2 / len(x) * x.T @ x
    dead = hessian.diagonal() == 0
    hessian[dead, dead] = 1
    weight[:, dead] = 0
    hessian += DAMPENING * hessian.diagonal().mean() * torch.eye(width, dtype=x.dtype)
    upper = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    mask = torch.zeros_like(weight, dtype=torch.bool)
    for start in range(0, width, BLOCK):
        stop = min(start + BLOCK, width)
        errors = torch.zeros_like(weight[:, start:stop])
        scale = upper.diagonal() ** 2
        if ":" not in pattern:
            score = weight[:, start:stop] ** 2 / scale[start:stop]
            mask[:, start:stop] = magnitude(score, pattern)
        for at in range(start, stop):
            if ":" in pattern:
                zeros, group = map(int, pattern.split(":"))
                if at % group == 0:
                    several = slice(at, at + group)
                    score = weight[:, several] ** 2 / scale[several]
                    mask[:, several] = smallest(score, zeros)
            gone = mask[:, at].to(weight.dtype) * weight[:, at]
            errors[:, at - start] = gone / upper[at, at]
            weight[:, at + 1 : stop] -= torch.outer(errors[:, at - start], upper[at, at + 1 : stop])
            weight[:, at] -= gone
        weight[:, stop:] -= errors @ upper[start:stop, stop:]
    return weight, mask


def matrices(layer: torch.nn.Module) -> dict[str, Any]:
    """Name → module, of every linear map of a block."""
    kinds = (torch.nn.Linear, Conv1D)
    return {name: module for name, module in layer.named_modules() if isinstance(module, kinds)}


def out_by_in(module: Any) -> torch.Tensor:
    weight: torch.Tensor = module.weight.detach()
    return weight.T if isinstance(module, Conv1D) else weight


def recorder(into: list[torch.Tensor]) -> Any:
    """A hook that keeps what a module reads, [tokens, in]."""
    return lambda module, read: into.append(read[0].flatten(0, -2))


def router(into: list[Any]) -> Any:
    """A hook that keeps what experts read, and which of them each token takes."""
    return lambda module, read: into.append(read[:2])


def pruned(weight: torch.Tensor, x: torch.Tensor, method: str, pattern: str) -> torch.Tensor:
    """weight: [out, in]; x: what it reads, [tokens, in]."""
    if method == "sparsegpt":
        return sparsegpt(weight, x, pattern)[0]
    gone = wanda(weight, x, pattern) if method == "wanda" else magnitude(weight, pattern)
    return weight.masked_fill(gone, 0)


def prune_experts(experts: Any, read: list[Any], method: str, pattern: str) -> None:
    """Of transformers' modules that hold all experts of a layer. read: (hidden, experts of each
    token), of every sequence."""
    hidden, chosen = (torch.cat(parts) for parts in zip(*read, strict=True))
    width = experts.down_proj.shape[2]
    for number in range(len(experts.down_proj)):
        x = hidden[(chosen == number).any(-1)]
        both = experts.gate_up_proj[number]
        gate, up = (x @ both.T).chunk(2, dim=-1)
        inner = experts.act_fn(gate) * up
        if not len(x):  # nothing is known of what it reads: all inputs count alike
            x, inner = torch.eye(x.shape[1]).to(x), torch.eye(width).to(x)
        halves = [
            pruned(both[part], x, method, pattern) for part in (slice(width), slice(width, None))
        ]
        experts.gate_up_proj[number].copy_(torch.cat(halves))
        down = experts.down_proj[number]
        down.copy_(pruned(down.clone(), inner, method, pattern))


def prune(model: Any, method: str, pattern: str, sequences: Sequence[Sequence[int]]) -> None:
    """In place; the model is in float64."""
    blocks, name = checkpoints.blocks_of(model)
    for layer in getattr(blocks, name):
        read: dict[str, list[torch.Tensor]] = {}
        found = matrices(layer)
        inside_layer = dict(layer.named_modules())
        experts = next((m for name, m in inside_layer.items() if name.endswith("experts")), None)
        routed: list[Any] = []

        hooks = [
            module.register_forward_pre_hook(recorder(read.setdefault(inside, [])))
            for inside, module in found.items()
        ]
        if experts is not None:
            hooks.append(experts.register_forward_pre_hook(router(routed)))
        with torch.no_grad():
            for sequence in sequences:
                model(torch.tensor([list(sequence)]), use_cache=False)
            for inside, module in found.items():
                weight, x = out_by_in(module), torch.cat(read[inside])
                weight.copy_(pruned(weight.clone(), x, method, pattern))
            if experts is not None:
                prune_experts(experts, routed, method, pattern)
        for each in hooks:
            each.remove()
