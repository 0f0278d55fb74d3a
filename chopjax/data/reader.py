"""How an example with fields becomes a document, where that is more than the text of one field."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

# The example and the name of its field → the document. Can be sent to other processes.
Reader = Callable[[Mapping[str, Any], str], str]


class BadExample(ValueError):
    """What is wrong with an example; the source knows where it is."""


def plain(value: Any) -> Any:
    """JSON's types, of numpy's and of bytes in UTF-8."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise BadExample(f"not UTF-8 ({error})") from None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # of numpy
        value = value.tolist()
        return plain(value) if isinstance(value, list | bytes) else value
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
