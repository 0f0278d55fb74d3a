"""Stop strings, and texts that are written as they grow."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st

from chopjax.generate.voice import Stream, Voice


class Bytes:
    """A tokenizer whose tokens are bytes."""

    def decode(
        self, ids: list[int], skip_special_tokens: bool, clean_up_tokenization_spaces: bool
    ) -> str:
        assert skip_special_tokens
        assert not clean_up_tokenization_spaces, "it would take back what was written"
        return bytes(ids).decode(errors="replace")


TEXTS = st.text(alphabet="ab.é\n", max_size=20)
STOPS = st.lists(st.text(alphabet="ab.é\n", min_size=1, max_size=3), max_size=3)


@hypothesis.given(TEXTS, STOPS)
@hypothesis.example(".aa", ["a", ".aa"])
def test_a_text_ends_before_its_first_stop_string(text: str, stops: list[str]) -> None:
    """Of the tokens up to the first that completes one: what would come behind has no say."""
    voice, ids = Voice(Bytes(), stops), list(text.encode())
    kept, cut = voice.cut(ids)
    shown = bytes(kept).decode(errors="replace")
    places = [shown.find(stop) for stop in stops if stop in shown]
    assert cut == shown[: min(places, default=len(shown))]
    assert voice.has_stop(ids) == bool(places)
    if places:  # as few tokens as have one
        assert voice.has_stop(kept)
        assert not voice.has_stop(kept[:-1])
    else:
        assert kept == ids


@hypothesis.given(TEXTS, STOPS, st.integers(1, 5))
@hypothesis.example(".aa", ["a", ".aa"], 1)
def test_what_was_written_is_never_taken_back(text: str, stops: list[str], pace: int) -> None:
    """However many tokens come at a time, in the middle of a character, too."""
    voice, ids, written = Voice(Bytes(), stops), list(text.encode()), list[str]()
    stream = Stream(voice, written.append)
    for end in range(pace, len(ids) + 1, pace):
        stream.hear(ids[:end])
        if voice.has_stop(ids[:end]):
            break
    _, whole = voice.cut(ids)
    stream.end(whole)
    assert "".join(written) == whole + "\n"
