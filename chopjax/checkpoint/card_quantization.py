"""What a model card says of quantized weights, from chopjax.json's history (provenance.py). No jax.

{"step": "quantization", "weights": "int4", "int8" or "fp8", "group": …, null for a scale a row,
 "method": "nearest", "format": compressed-tensors' name of it,
 "matrices": …, "numbers": …}            how many, and how many weights they hold
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
    return [("quantization", f"{what} ({entry.get('format')})")]
