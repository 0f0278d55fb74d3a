"""What a model card says of one entry of chopjax.json's history: zeros, widths, bits. No jax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from chopjax.checkpoint import card_quantization, card_sparsity, card_width
from chopjax.checkpoint.provenance import DEQUANTIZATION, QUANTIZATION, WIDTH


def facts(entry: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Rows of the card's table, of a record that may be anybody's; none of other entries. history:
    all of them, this one too."""
    step = entry.get("step")
    if step == WIDTH:
        return card_width.facts(entry)
    if step in (QUANTIZATION, DEQUANTIZATION):
        return card_quantization.facts(entry, history)
    if card_sparsity.made_zeros(entry):
        return card_sparsity.facts(entry, history)
    return []
