"""Training steps of transformers and torch: the peers' side of comparisons."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM
from workers import Step


def open_model(folder: str | Path, dtype: str = "float32", **options: Any) -> Any:
    """A model with sdpa attention, its weights in dtype."""
    torch.set_num_threads(os.cpu_count() or 1)
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="sdpa", **options
    )


def make_step(
    model: Any,
    trained: Any,
    *,
    rate: float,
    betas: tuple[float, float],
    epsilon: float,
    clip: float,
    run: Callable[..., Any] | None = None,
    decay: float = 0.0,
    autocast: bool = False,
) -> Step:
    """A step that clips the gradient's norm and updates by AdamW, fused, its moments in the
    parameters' type.

    trained: parameters, or groups of them. run: the model, compiled. autocast: products in
    bfloat16, whatever the parameters' type.
    """
    optimizer = torch.optim.AdamW(
        trained, lr=rate, betas=betas, eps=epsilon, weight_decay=decay, fused=True
    )
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    device = model.device
    run = model if run is None else run  # a compiled one has no truth value

    def step(tokens: np.ndarray) -> float:
        inputs, targets = (
            torch.from_numpy(part.astype(np.int64)).to(device)
            for part in (tokens[:, :-1], tokens[:, 1:])
        )
        context: Any = contextlib.nullcontext()
        if autocast:
            context = torch.autocast(device.type, torch.bfloat16)
        with context:
            found = run(input_ids=inputs, labels=targets, shift_labels=targets, use_cache=False)
        found.loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return found.loss.item()  # waits for the device

    return step


def by_decay(model: Any, decay: float) -> list[dict[str, Any]]:
    """Groups of all parameters: weight decay is not for norms and biases."""
    named = list(model.parameters())
    return [
        {"params": [p for p in named if p.ndim >= 2], "weight_decay": decay},
        {"params": [p for p in named if p.ndim < 2], "weight_decay": 0.0},
    ]


def with_lora(base: Any, rank: int, dropout: float, matrices: tuple[str, ...]) -> Any:
    """peft's LoRA on matrices of the feed-forward, scaled by 1; A and B are float32."""
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        r=rank,
        lora_alpha=rank,
        lora_dropout=dropout,
        target_modules=[f"{matrix}_proj" for matrix in matrices],
        task_type="CAUSAL_LM",
    )
    return get_peft_model(base, lora).train()
