"""What is written where a terminal has no Unicode: `+/-` for `±`, and never a traceback."""

from __future__ import annotations

import codecs

PLAIN = {
    "±": "+/-",
    "−": "-",
    "–": "-",
    "…": "...",
    "→": "->",
    "►": ">",
    "×": "x",
    "·": "*",
    "²": "^2",
    "Σ": "sum ",
    "∂": "d",
    "ℓ": "l",
}
ERRORS = "chopjax.plain"  # for `errors=` of a stream


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(PLAIN.get(character, "?") for character in text), error.end


codecs.register_error(ERRORS, _plain)
