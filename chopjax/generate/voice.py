"""Token ids as they come, as text: up to a stop string, and a piece at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from chopjax.score.ending import shortest

INCOMPLETE = "\ufffd"  # what a decoder shows of a character whose bytes are not all there


class Voice:
    """tokenizer: of transformers. stops: strings before which a text ends."""

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()):
        self._tokenizer, self.stops = tokenizer, tuple(stops)

    def text(self, ids: Sequence[int]) -> str:
        # To clean spaces up would change what has been written, and what the tokens say.
        decoded: str = self._tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return decoded

    def has_stop(self, ids: Sequence[int]) -> bool:
        return bool(self.stops) and self._end(self.text(ids)) is not None

    def ends(self, ids: Sequence[int]) -> int | None:
        """How many ids there are up to the one that completes the first stop string; None: none
        does."""
        return shortest(ids, self.has_stop)

    def cut(self, ids: Sequence[int]) -> tuple[list[int], str]:
        """The ids up to the one that completes the first stop string, and the text before that."""
        kept = list(ids[: self.ends(ids)])
        text = self.text(kept)
        return kept, text[: self._end(text)]

    def sure(self, ids: Sequence[int]) -> str:
        """As much of the text as no further token changes: whole characters, and nothing that a
        stop string might begin with."""
        if self.has_stop(ids):
            return self.cut(ids)[1]
        text = self.text(ids).rstrip(INCOMPLETE)
        held = max(
            (n for stop in self.stops for n in range(1, len(stop)) if text.endswith(stop[:n])),
            default=0,
        )
        return text[: len(text) - held]

    def _end(self, text: str) -> int | None:
        places = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        return min(places, default=None)


def special_stops(tokenizer: Any, stops: Sequence[str]) -> frozenset[int]:
    """The stop strings that are special tokens, by id: a text does not show them."""
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(id for id, token in added if token.special and token.content in stops)


class Stream:
    """Writes a text as it grows."""

    def __init__(self, voice: Voice, write: Callable[[str], None]):
        self._voice, self._write, self._written = voice, write, ""

    def hear(self, ids: Sequence[int]) -> None:
        self._go_on(self._voice.sure(ids))

    def end(self, text: str) -> None:
        self._go_on(text)
        self._write("\n")

    def _go_on(self, text: str) -> None:
        if text.startswith(self._written) and text != self._written:
            self._write(text[len(self._written) :])
            self._written = text
