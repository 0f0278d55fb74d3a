from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from chopjax.data.messages import NotMessages, as_text, of_field, of_text, says_something

USER = {"role": "user", "content": "Who?"}
ANSWER = {"role": "assistant", "content": "日本\n"}


@pytest.mark.parametrize(
    "value",
    [
        [USER, ANSWER],
        [USER | {"name": None}, ANSWER | {"tool_calls": None}],  # as datasets fills rows up
        {"role": ["user", "assistant"], "content": ["Who?", "日本\n"]},
        {
            "role": np.array([b"user", b"assistant"], object),
            "content": np.array([b"Who?", "日本\n".encode()], object),
        },
    ],
)
def test_every_form_is_the_same_conversation(value: Any) -> None:
    assert of_text(as_text(value)) == [USER, ANSWER]
    assert as_text(value) == as_text([USER, ANSWER])


def test_other_keys_stay() -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}
    assert of_text(as_text([USER, call])) == [USER, call]
    assert says_something(call)
    assert not says_something({"role": "assistant", "content": " \n"})
    assert not says_something({"role": "assistant", "name": "bot"})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("text", "field 'm': a list of .* is needed, found 'text'"),
        ({"role": ["user"], "content": ["a", "b"]}, "a list of"),
        ({}, "a list of"),
        ([USER, "x"], "message 2 is 'x', no object with a role"),
        ([{"from": "human", "value": "x"}], "message 1 has the role None; one of system"),
        ([USER | {"role": "gpt"}], "message 1 has the role 'gpt'; one of system, developer, user"),
        ([USER, ANSWER | {"content": 3}], "message 2: its content is 3, no text"),
        ([USER | {"content": b"\xff"}], "not UTF-8"),
    ],
)
def test_mistakes_are_named(value: Any, message: str) -> None:
    with pytest.raises(NotMessages, match=message):
        of_field({"m": value, "n": 1}, "m")
    with pytest.raises(
        NotMessages, match=r"no field 'x'; name another with --field \(here: m, n\)"
    ):
        of_field({"m": value, "n": 1}, "x")
