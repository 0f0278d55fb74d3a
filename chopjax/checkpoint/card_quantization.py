"""What a model card says of quantized weights, from chopjax.json's history (provenance.py). No jax.

    {"step": "quantization", "weights": "int4", "int8" or "fp8",
     "group": …,                             inputs that share a scale; null: all of an output
     "method": "nearest" or "gptq", "format": compressed-tensors' name of it,
     "matrices": …, "numbers": …,            how many, and how many weights they hold
     "text": […], …, "loss": {"parent": …, "quantized": …}, …}   as card_sparsity.py has them

`text` and what follows it are missing where no text was looked at. Where something was done after
that computes with numbers, an entry before it says that the codes became those:

    {"step": "dequantization", "weights": "int4"}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from chopjax.checkpoint.card_sparsity import loss_facts, taken_since
from chopjax.checkpoint.provenance import DEQUANTIZATION, QUANTIZATION

NOTE = (
    "The blocks' matrices are quantized: transformers reads them where `compressed-tensors` is "
    "installed, and vLLM by itself."
)


def last_format(record: Mapping[str, Any]) -> tuple[str, bool]:
    """The format that weights were put in last, and whether they still are; empty where they never
    were in any."""
    steps = (QUANTIZATION, DEQUANTIZATION)
    found = [entry for entry in record["history"] if entry.get("step") in steps]
    if not found:
        return "", False
    return str(found[-1].get("weights")), found[-1]["step"] == QUANTIZATION


def floats_note(kind: str) -> str:
    """What to say of weights that are in floating point again."""
    return (
        f"The weights are in floating point: what was done after they were quantized began with "
        f"the numbers that {kind}'s codes stand for. `chopjax quantize FOLDER OUT --weights "
        f"{kind}` quantizes them again."
    )


def facts(entry: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Rows of the card's table, of a record that may be anybody's. history: all of its entries."""
    if entry["step"] == DEQUANTIZATION:
        what = f"again, the numbers that {entry.get('weights')}'s codes stand for"
        return [("floating point", what)]
    group = entry.get("group")
    shared = "an output" if group is None else f"{group} inputs of an output"
    what = f"{entry.get('weights')}, a scale for {shared}, {entry.get('method')}"
    if isinstance(numbers := entry.get("numbers"), int):
        what += f": {numbers:,} weights of the blocks' matrices"
    what += f" ({entry.get('format')}){taken_since(entry, history)}"
    rows = [("quantization", what)]
    return rows + loss_facts("quantization", entry, "quantized")
