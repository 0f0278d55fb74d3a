"""Faults that can befall files, and what a target of damage is.

A target is a good thing, the faults that can befall it and the commands that read it; they are
listed in fault_targets.py, and fault_runner.py breaks and runs them. The same seed gives the same
faults.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# A fault breaks a thing in place and says what it did; None where it cannot befall this thing.
Fault = Callable[[Path, random.Random], str | None]


@dataclasses.dataclass(frozen=True)
class Command:
    """argv of `chopjax`, with {thing} for the broken thing, {out} for a name that is free and
    {folder} for the case's folder, in which both lie.

    share: of the cases, in how many it runs. Commands that need what an earlier one of the case
    wrote come after it, with `after=True`: they run where that one ended with 0, on its {out}.
    """

    argv: tuple[str, ...]
    share: float = 1.0
    after: bool = False


@dataclasses.dataclass(frozen=True)
class Target:
    """make: write a good thing into an empty folder; the random numbers choose which. What
    commands need besides goes into the folder's parent.

    prepare: done once a process, before the first case: imports, so that forks need not."""

    make: Callable[[Path, random.Random], None]
    faults: Mapping[str, Fault]
    commands: Sequence[Command]
    prepare: Callable[[], None] = lambda: None


def succeed(*argv: object) -> None:
    """`chopjax` with these words in a fork of this process, which has imported what it needs."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            from chopjax.cli import main

            code = main([str(word) for word in argv])
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise RuntimeError(f"{argv} ended with {code}")


# ------------------------------------------------------------------- faults of files of any kind


def _pick(thing: Path, rng: random.Random, suffix: str = "") -> Path | None:
    """A file, not a link, of a thing."""
    files = sorted(p for p in thing.rglob(f"*{suffix}") if p.is_file() and not p.is_symlink())
    return rng.choice(files) if files else None


def on_bytes(change: Callable[[bytes, random.Random], bytes], suffix: str = "") -> Fault:
    """A fault that rewrites the bytes of one file."""

    def fault(thing: Path, rng: random.Random) -> str | None:
        path = _pick(thing, rng, suffix)
        if path is None:
            return None
        before = path.read_bytes()
        after = change(before, rng)
        path.write_bytes(after)
        return f"{path.relative_to(thing)}" if after != before else None

    return fault


def _flip(raw: bytes, rng: random.Random) -> bytes:
    if not raw:
        return raw
    at = rng.randrange(min(len(raw), 4096)) if rng.random() < 0.7 else rng.randrange(len(raw))
    return raw[:at] + bytes([raw[at] ^ (1 << rng.randrange(8))]) + raw[at + 1 :]


def on_file(change: Callable[[Path, Path, random.Random], object], suffix: str = "") -> Fault:
    """A fault that puts something else in the place of one file: change(path, thing, rng)."""

    def fault(thing: Path, rng: random.Random) -> str | None:
        path = _pick(thing, rng, suffix)
        if path is None:
            return None
        change(path, thing, rng)
        return f"{path.relative_to(thing)}"

    return fault


def _folder_instead(path: Path, thing: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _fifo_instead(path: Path, thing: Path, rng: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def _link_to_itself(path: Path, thing: Path, rng: random.Random) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _link_outside(path: Path, thing: Path, rng: random.Random) -> None:
    """To a file of the same name and bytes in `secret` beside the thing."""
    secret = thing.parent / "secret" / path.relative_to(thing)
    secret.parent.mkdir(parents=True, exist_ok=True)
    raw = path.read_bytes()
    secret.write_bytes(raw)
    path.unlink()
    path.symlink_to(secret)


def _folder_link_outside(thing: Path, rng: random.Random) -> str | None:
    folders = sorted(p for p in thing.rglob("*") if p.is_dir() and not p.is_symlink())
    if not folders:
        return None
    folder = rng.choice(folders)
    secret = thing.parent / "secret" / folder.relative_to(thing)
    secret.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(secret)
    folder.symlink_to(secret)
    return f"{folder.relative_to(thing)}"


def _dangling_link(path: Path, thing: Path, rng: random.Random) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def _unreadable(path: Path, thing: Path, rng: random.Random) -> None:
    path.chmod(0)


FILE_FAULTS: dict[str, Fault] = {
    "bit flipped": on_bytes(_flip),
    "bytes overwritten": on_bytes(
        lambda raw, rng: (
            raw[: (at := rng.randrange(len(raw) + 1))]
            + rng.randbytes(rng.randint(1, 64))
            + raw[at + 64 :]
        )
    ),
    "truncated": on_bytes(lambda raw, rng: raw[: rng.randrange(len(raw))] if raw else raw),
    "emptied": on_bytes(lambda raw, rng: b""),
    "bytes added": on_bytes(lambda raw, rng: raw + rng.randbytes(rng.randint(1, 64))),
    "zeros": on_bytes(lambda raw, rng: bytes(len(raw))),
    "file removed": on_file(lambda path, thing, rng: path.unlink()),
    "folder instead of file": on_file(_folder_instead),
    "fifo instead of file": on_file(_fifo_instead),
    "link to itself": on_file(_link_to_itself),
    "dangling link": on_file(_dangling_link),
    "link outside": on_file(_link_outside),
    "folder linked outside": _folder_link_outside,
    "foreign file": lambda thing, rng: str(
        (thing / f"x{rng.randrange(9)}.json").write_bytes(rng.randbytes(32))
    ),
}
if os.geteuid():  # root reads everything
    FILE_FAULTS["unreadable"] = on_file(_unreadable)


# ------------------------------------------------------------------------- faults of JSON files


class Raw(str):
    """Text that goes into a JSON file as it is."""


ODD: list[Any] = [
    None, True, False, -1, 0, 1, 2, 0.5, -0.0, 1e-320, 2**31, 2**63, 2**64, 10**30, -(10**400),
    Raw("1e400"), Raw("-1e999"), Raw("NaN"), Raw("Infinity"), Raw("1" + "0" * 5000),
    "", "0", "x" * 100_000, "\x1b[31m\r\n\x00", "[red]\\[/nope]", "é€😀", "\udcff",
    "../secret/config.json", "/etc/passwd", "float99", [], {}, [[]], [None], {"a": {"b": []}},
    [1] * 1000, ["full_attention"], {"rope_type": "yarn", "factor": 1e300}, {"": None},
]  # fmt: skip


def dump(value: Any) -> str:
    """JSON text; Raw strings go in as they are."""
    raws: list[str] = []

    def mark(node: Any) -> Any:
        if isinstance(node, Raw):
            raws.append(str(node))
            return f"@raw{len(raws) - 1}@"
        if isinstance(node, dict):
            return {key: mark(inner) for key, inner in node.items()}
        return [mark(inner) for inner in node] if isinstance(node, list) else node

    text = json.dumps(mark(value), indent=1)
    for number, raw in enumerate(raws):
        text = text.replace(f'"@raw{number}@"', raw)
    return text


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) below a JSON value."""
    keys: list[Any] = []
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = list(range(len(value)))
    found = [(value, key) for key in keys]
    for key in keys:
        found += places(value[key])
    return found


def on_json(change: Callable[[Any, random.Random], Any], suffix: str = ".json") -> Fault:
    """A fault that rewrites one JSON file: change(value, rng) → the value to write."""

    def text(raw: bytes, rng: random.Random) -> bytes:
        try:
            value = json.loads(raw)
        except ValueError:
            return raw
        return dump(change(value, rng)).encode("utf-8", "surrogatepass")

    return on_bytes(text, suffix)


def odd_value(value: Any, rng: random.Random) -> Any:
    """Another value at a random place; places near the top are likelier."""
    found = places(value)
    if not found:
        return rng.choice(ODD)
    if isinstance(value, dict) and rng.random() < 0.5:
        found = [(value, key) for key in value]
    container, key = rng.choice(found)
    container[key] = rng.choice(ODD)
    return value


def _other_type(value: Any, rng: random.Random) -> Any:
    """Something else that is a JSON document."""
    return rng.choice([[], None, 3, "text", [value], {"config": value}, Raw(""), Raw("{}{}")])


def _dropped(value: Any, rng: random.Random) -> Any:
    found = places(value)
    if found:
        container, key = rng.choice(found)
        del container[key]
    return value


def _renamed(value: Any, rng: random.Random) -> Any:
    found = [(c, k) for c, k in places(value) if isinstance(c, dict)]
    if found:
        container, key = rng.choice(found)
        new = rng.choice([key.upper(), key + "_", "", "x" * 100_000, "\x1b[2J" + key, "[bold]"])
        container[new] = container.pop(key)
    return value


def _two_values(value: Any, rng: random.Random) -> Any:
    """Two odd values, so that checks meet in other orders."""
    return odd_value(odd_value(value, rng), rng)


def _key_twice(raw: bytes, rng: random.Random) -> bytes:
    lines = raw.split(b"\n")
    keyed = [i for i, line in enumerate(lines) if b'": ' in line and line.endswith(b",")]
    if keyed:
        at = rng.choice(keyed)
        lines.insert(at, lines[at])
    return b"\n".join(lines)


def _deep(value: Any, rng: random.Random) -> Any:
    deep = Raw(
        "[" * 100_000 + "]" * 100_000 if rng.random() < 0.5 else '{"a":' * 3_000 + "1" + "}" * 3_000
    )
    if not isinstance(value, dict) or rng.random() < 0.3:
        return deep
    return value | {rng.choice([*value, "extra"]): deep}


JSON_FAULTS: dict[str, Fault] = {
    "odd value": on_json(odd_value),
    "two odd values": on_json(_two_values),
    "other JSON type": on_json(_other_type),
    "key dropped": on_json(_dropped),
    "key renamed": on_json(_renamed),
    "key added": on_json(
        lambda value, rng: (
            value | {rng.choice(["x", "\x07", "[/]", "k" * 9999]): rng.choice(ODD)}
            if isinstance(value, dict)
            else value
        )
    ),
    "key twice": on_bytes(_key_twice, ".json"),
    "deep JSON": on_json(_deep),
    "not UTF-8": on_bytes(lambda raw, rng: raw.replace(b"a", b"\xff", 3), ".json"),
    "UTF-16": on_bytes(lambda raw, rng: raw.decode("utf-8", "replace").encode("utf-16"), ".json"),
    "byte order mark": on_bytes(lambda raw, rng: b"\xef\xbb\xbf" + raw, ".json"),
    "comma too many": on_bytes(lambda raw, rng: raw.replace(b"}", b",}", 1), ".json"),
}
