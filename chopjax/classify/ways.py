"""The ways to classify, by name. No jax."""

from __future__ import annotations

from typing import Literal

MethodKind = Literal["full", "prefix", "lora", "none"]
HeadKind = Literal["lm", "classifier"]

METHODS: tuple[MethodKind, ...] = ("full", "prefix", "lora", "none")
HEADS: tuple[HeadKind, ...] = ("lm", "classifier")
# Of AdamW, constant. Why Lift so Heavy (arXiv 2402.11700) has that of `full`, its authors' code for
# GNNavi that of `prefix`; the others are ours.
LEARNING_RATES: dict[MethodKind, float] = {
    "full": 5e-5,
    "prefix": 1e-2,
    "lora": 3e-4,
    "none": 1e-3,
}
VIRTUAL_TOKENS = 20  # of a prefix


def trains(method: MethodKind, head: HeadKind) -> bool:
    """Whether anything is trained."""
    return method != "none" or head == "classifier"
