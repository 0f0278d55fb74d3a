"""Conversations as documents: lists of messages, as JSON where a text would be. No jax.

    [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}, …]

Keys beside these (`tool_calls`, `name`, …) go to the chat template as they are; what is null is
left out, as transformers does. Equal conversations are equal texts, whichever source they are from.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from typing import Any

from chopjax.data.reader import BadExample, plain

Message = dict[str, Any]

ASSISTANT = "assistant"
ROLES = ("system", "developer", "user", ASSISTANT, "tool", "function")


class NotMessages(BadExample):
    """What is wrong with a value."""


def as_text(value: Any) -> str:
    """Messages as a source holds them → the document. Columns ({"role": […], "content": […]}), as
    TFDS and older Hugging Face datasets keep a list of objects, are taken too."""
    value = plain(value)
    if isinstance(value, dict):
        value = _rows(value)
    if not isinstance(value, list):
        raise NotMessages(f'a list of {{"role", "content"}} is needed, found {reprlib.repr(value)}')
    messages = [_checked(number, message) for number, message in enumerate(value, 1)]
    return json.dumps(messages, ensure_ascii=False, separators=(",", ":"))


def of_field(example: Mapping[str, Any], field: str) -> str:
    """as_text of a field of an example, which the message names where it cannot be."""
    if field not in example:
        fields = ", ".join(reprlib.repr(name)[1:-1] for name in list(example)[:20])
        raise NotMessages(f"no field {field!r}; name another with --field (here: {fields})")
    try:
        return as_text(example[field])
    except BadExample as error:
        raise NotMessages(f"field {field!r}: {error}") from None


def of_text(text: str) -> list[Message]:
    """The inverse of as_text."""
    messages: list[Message] = json.loads(text)
    return messages


def says_something(message: Message) -> bool:
    """Whether there is more in it than who speaks: words that are not blank, or a call."""
    rest = [value for key, value in message.items() if key not in ("role", "name")]
    return any(value.strip() if isinstance(value, str) else value for value in rest)


def _checked(number: int, message: Any) -> Message:
    if not isinstance(message, dict):
        raise NotMessages(f"message {number} is {reprlib.repr(message)}, no object with a role")
    role = message.get("role")
    if role not in ROLES:
        raise NotMessages(
            f"message {number} has the role {reprlib.repr(role)}; one of {', '.join(ROLES)} is "
            "needed"
        )
    content = message.get("content")
    if not isinstance(content, str | list | None):
        raise NotMessages(f"message {number}: its content is {reprlib.repr(content)}, no text")
    return {key: item for key, item in sorted(message.items()) if item is not None}


def _rows(columns: dict[str, Any]) -> list[Message] | None:
    """None where these are not columns of one length."""
    lists = [column for column in columns.values() if isinstance(column, list)]
    if not columns or len(lists) < len(columns) or len({len(column) for column in lists}) > 1:
        return None
    return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]
