"""Keep lists: the layers that stay, as people write them and as arithmetic has them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from chopjax.errors import UserError

Keep = tuple[int, ...]  # source layer indices, from 0, ascending


def parse_keep(text: str, num_layers: int, where: str = "--keep") -> Keep:
    """The layers of a list such as "0,13-23": from 0, ends inclusive, ascending.

    where: the flag or field that holds the text. Raises UserError where a layer does not exist,
    stands twice or out of order, or where nothing would be removed.
    """
    keep = parse_layers(where, text, num_layers)
    if len(keep) == num_layers:
        raise UserError(f"{where} {text!r} keeps all {num_layers} layers; nothing would be removed")
    return keep


def parse_layers(where: str, text: str, num_layers: int) -> Keep:
    """Likewise, and all layers may be named."""
    keep: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,99})\s*(?:-\s*(\d{1,99})\s*)?", part)
        if not match:
            raise UserError(
                f"{where} {text!r}: {part.strip()!r} is not a layer (5) or a range (13-23)"
            )
        low, high = int(match[1]), int(match[2] or match[1])
        if max(low, high) >= num_layers:
            raise UserError(
                f"{where} {text!r}: there is no layer {max(low, high)}; "
                f"the model's {num_layers} layers are numbered 0-{num_layers - 1}"
            )
        if low > high:
            raise UserError(f"{where} {text!r}: {low}-{high} runs backwards; write {high}-{low}")
        if keep and low <= keep[-1]:
            fault = "stands twice" if low in keep else f"comes after {keep[-1]}"
            raise UserError(f"{where} {text!r}: layer {low} {fault}; list layers once, ascending")
        keep += range(low, high + 1)
    return tuple(keep)


def runs(layers: Iterable[int]) -> list[tuple[int, int]]:
    """First and last layer of every run of neighbours: (0, 13, 14, 15) → [(0, 0), (13, 15)]."""
    ends: list[tuple[int, int]] = []
    for layer in layers:
        if ends and layer == ends[-1][1] + 1:
            ends[-1] = (ends[-1][0], layer)
        else:
            ends.append((layer, layer))
    return ends


def ranges(layers: Iterable[int]) -> str:
    """(0, 13, 14, 15) → "0,13-15": what parse_keep reads, and what people are shown."""
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs(layers))


def removed(keep: Keep, num_layers: int) -> Keep:
    """The layers that go."""
    kept = set(keep)
    return tuple(layer for layer in range(num_layers) if layer not in kept)
