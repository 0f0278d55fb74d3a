"""The one exception that is the user's to mend, and how messages are made fit to be read."""

from __future__ import annotations

from collections.abc import Iterable

MESSAGE_BYTES = 1_900  # of a whole message
LINE_BYTES = 600
_LISTING_BYTES = 1_100  # so that what stands before and after a list has room
_LAST_LINES = 5  # of a message too long: the advice stands at its end


class UserError(Exception):
    """What is wrong, where (file, tensor, flag), and what to do about it.

    The command line prints the message without a traceback and exits with code 2. Anything else
    that escapes is a defect of chopjax and keeps its traceback. Names and values may stand in it
    as they were found: `readable` is applied where it is printed.
    """


def listing(problems: list[str], limit: int = 40) -> str:
    """One problem a line, indented; a long list is cut with a count of the rest."""
    lines: list[str] = []
    room = _LISTING_BYTES
    for problem in problems[:limit]:
        line = "  " + cut(escaped(problem).replace("\n", "\n    "), 240)
        room -= len(line.encode()) + 1
        if room < 0 and lines:
            break
        lines.append(line)
    if len(problems) > len(lines):
        lines.append(f"  … and {len(problems) - len(lines)} more")
    return "\n".join(lines)


def first_line(error: BaseException) -> str:
    """What another's program says of a fault, without details; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:1000]


def readable(message: str) -> str:
    """A message for a terminal: no control characters, long lines and long messages cut.

    What is cut from a message is its middle, so that advice at its end stays. At most 1.9 kB.
    """
    lines = [cut(line, LINE_BYTES) for line in escaped(message).split("\n")]
    if _bytes(lines) <= MESSAGE_BYTES:
        return "\n".join(lines)
    tail: list[str] = []
    while len(tail) < _LAST_LINES and _bytes([lines[-1], *tail]) < MESSAGE_BYTES // 3 and lines[1:]:
        tail.insert(0, lines.pop())
    head: list[str] = []
    for line in lines:
        if _bytes([*head, line, "  …", *tail]) > MESSAGE_BYTES:
            break
        head.append(line)
    return "\n".join([*head, "  …", *tail])


def escaped(text: str) -> str:
    """Control characters and broken characters spelled out, so that they are seen and harmless."""
    text = decoded(text)
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )


def decoded(text: str) -> str:
    """Text in which bytes of a file name that this locale could not decode are UTF-8 again."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a surrogate that no file name has
        return text


def cut(text: str, nbytes: int) -> str:
    """At most so many bytes of UTF-8: the start and the end of what is longer."""
    raw = text.encode("utf-8", "backslashreplace")
    if len(raw) <= nbytes:
        return text
    end = nbytes // 3
    start = nbytes - end - len(" … ".encode())
    return f"{raw[:start].decode(errors='ignore')} … {raw[-end:].decode(errors='ignore')}"


def _bytes(lines: list[str]) -> int:
    return sum(len(line.encode()) + 1 for line in lines)


def did_you_mean(word: str, known: Iterable[str], most: int = 3) -> str:
    """ "; did you mean …?" with the names that come near; empty where none does."""
    import difflib

    known = list(known)
    longer = [name for name in known if len(word) > 2 and name.startswith(word)]
    near = (longer or difflib.get_close_matches(word, known, most, cutoff=0.7))[:most]
    return f"; did you mean {' or '.join(near)}?" if near else ""
