"""Paths as users write them."""

from __future__ import annotations

import os
from pathlib import Path

from chopjax.errors import UserError


def expanded(path: str | os.PathLike[str]) -> Path:
    """`~` and `~user` at the beginning replaced by the home folder.

    Raises UserError where there is no such user, and for what no path can hold.
    """
    text = os.fspath(path)
    if "\0" in text:
        raise UserError(f"{text!r}: a path cannot hold a zero byte")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError(
            f"{text}: {text.partition('/')[0]} has no home folder here; write ./{text} for a name "
            "that begins with ~"
        ) from None
