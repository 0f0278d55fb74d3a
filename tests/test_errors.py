"""Messages that anybody can read, whatever stands in them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chopjax.errors import MESSAGE_BYTES, cut, escaped, first_line, listing, readable

ANY_TEXT = st.text(st.characters(categories=None), max_size=400)  # surrogates, too


@given(st.lists(ANY_TEXT, max_size=20), st.integers(1, 40))
def test_any_message_is_short_and_harmless(parts: list[str], times: int) -> None:
    message = "chopjax inspect: error: " + "\n".join(part * times for part in parts)
    shown = readable(message)
    raw = shown.encode("utf-8")  # no surrogates are left
    assert len(raw) <= MESSAGE_BYTES
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert shown.startswith("chopjax inspect: error: ")


@given(st.lists(ANY_TEXT, max_size=60))
def test_any_list_is_short(problems: list[str]) -> None:
    assert len(listing(problems).encode()) < 1_500


def test_a_usual_message_is_left_alone() -> None:
    message = "/tmp/é ✓: no config.json\n  give --dtype"
    assert readable(message) == message


def test_a_long_message_keeps_its_beginning_and_its_advice() -> None:
    message = "\n".join(["what is wrong", *(f"  tensor {i}" for i in range(9999)), "what to do"])
    shown = readable(message).splitlines()
    assert (shown[0], shown[1], shown[-1]) == ("what is wrong", "  tensor 0", "what to do")
    assert "  …" in shown


def test_bytes_of_a_name_in_a_locale_without_them() -> None:
    assert escaped("caf\udcc3\udca9") == "café"
    assert escaped("caf\udcff\ud800") == "caf\\udcff\\ud800"


def test_the_count_of_the_rest() -> None:
    assert listing([f"missing: tensor {i}" for i in range(100)]).endswith("more")
    assert listing(["a", "b"]) == "  a\n  b"


def test_cut_keeps_both_ends() -> None:
    assert cut("a" * 500 + "z" * 500, 100).startswith("aaa")
    assert cut("a" * 500 + "z" * 500, 100).endswith("zzz")
    assert len(cut("é" * 1000, 99).encode()) <= 99


def test_the_first_line_of_an_error() -> None:
    assert first_line(ValueError("\n no such shard\n  at 0x7f…")) == "no such shard"
    assert first_line(AssertionError()) == "AssertionError"
