"""The one exception that is the user's to mend, and what its messages are made of."""

from __future__ import annotations

from collections.abc import Iterable


class UserError(Exception):
    """What is wrong, where (file, tensor, flag), and what to do about it.

    The command line prints the message without a traceback and exits with code 2. Anything else
    that escapes is a defect of chopjax and keeps its traceback.
    """


def listing(problems: list[str], limit: int = 40) -> str:
    """One problem a line, indented; a long list is cut with a count of the rest."""
    lines = [f"  {problem}" for problem in problems[:limit]]
    if len(problems) > limit:
        lines.append(f"  … and {len(problems) - limit} more")
    return "\n".join(lines)


def did_you_mean(word: str, known: Iterable[str], most: int = 3) -> str:
    """ "; did you mean …?" with the names that come near; empty where none does."""
    import difflib

    known = list(known)
    longer = [name for name in known if len(word) > 2 and name.startswith(word)]
    near = (longer or difflib.get_close_matches(word, known, most, cutoff=0.7))[:most]
    return f"; did you mean {' or '.join(near)}?" if near else ""
