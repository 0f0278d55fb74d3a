"""When a text is long enough. No jax.

Whoever writes it, several tokens at a time, keeps those that it would have kept one by one: what
stands behind the end has no say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

# A prompt's index and its new ids so far → with how many of them its text ends, None: not yet.
Ends = Callable[[int, list[int]], int | None]


def never(prompt: int, ids: list[int]) -> None:
    """A text that nothing but its length and its own tokens end."""


def shortest(ids: Sequence[int], is_enough: Callable[[Sequence[int]], bool]) -> int | None:
    """How many of the ids are enough at least; None where all of them are not. What is enough stays
    so with more."""
    if not is_enough(ids):
        return None
    few, enough = 0, len(ids)
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (few, middle) if is_enough(ids[:middle]) else (middle, enough)
    return enough
