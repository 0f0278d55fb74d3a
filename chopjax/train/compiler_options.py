"""compute.compiler_options: options for XLA, by name. No jax."""

from __future__ import annotations

import contextlib

from chopjax.errors import UserError

Option = bool | int | float | str


def read_options(text: str) -> dict[str, Option]:
    """Names and values of "NAME=VALUE,NAME=VALUE": true and false, numbers, and text.

    Raises UserError for what is not NAME=VALUE; which names there are is the compiler's to say.
    """
    found: dict[str, Option] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        if not (name and equals and value):
            raise UserError(f"compute.compiler_options: {part!r} is not NAME=VALUE")
        found[name] = _typed(value)
    return found


def _typed(value: str) -> Option:
    if value in ("true", "false"):
        return value == "true"
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(value)
    return value
