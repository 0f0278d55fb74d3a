"""What a model card says of quantized weights, from chopjax.json's history (provenance.py). No jax.

    {"step": "quantization", "weights": "int4", "int8" or "fp8",
     "group": …,                             inputs that share a scale; null: all of an output
     "method": "nearest" or "gptq", "format": compressed-tensors' name of it,
     "matrices": …, "numbers": …,            how many, and how many weights they hold
     "text": […], …, "loss": {"parent": …, "quantized": …}, …}   as card_sparsity.py has them

`text` and what follows it are missing where no text was looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chopjax.checkpoint.card_sparsity import loss_facts

NOTE = (
    "The blocks' matrices are quantized: transformers reads them where `compressed-tensors` is "
    "installed, and vLLM by itself."
)


def facts(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rows of the card's table, of a record that may be anybody's."""
    group = entry.get("group")
    shared = "an output" if group is None else f"{group} inputs of an output"
    what = f"{entry.get('weights')}, a scale for {shared}, {entry.get('method')}"
    if isinstance(numbers := entry.get("numbers"), int):
        what += f": {numbers:,} weights of the blocks' matrices"
    rows = [("quantization", f"{what} ({entry.get('format')})")]
    return rows + loss_facts("quantization", entry, "quantized")
