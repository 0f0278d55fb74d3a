"""Several paths in one text, whose own names may hold the commas and equals signs between them.

Of all ways to read such a text those count whose paths exist. Where there is one, it is meant;
where there are two, nothing is guessed.
"""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Callable, Iterator
from typing import TypeVar

from chopjax.data.array_files import file_system
from chopjax.disk.files import expanded
from chopjax.errors import UserError

Value = TypeVar("Value")

_COMMAS = 8  # in one name


def weighted_folders(text: str) -> list[tuple[str, float]]:
    """ "FOLDER", or "FOLDER=WEIGHT,FOLDER=WEIGHT" → (folder, weight) pairs; a folder alone has 1.

    Raises UserError where the folders that exist allow more than one reading. A path that ends in
    a slash has no second one: `lr=1/` is that folder, `lr/=1` is the folder lr with weight 1.
    """
    cuts = [*(match.start(1) for match in re.finditer(r"=[^,=/]*(,)", text)), len(text)]

    def parse(part: str) -> tuple[str, float] | None:
        folder, equals, weight = part.rpartition("=")
        try:
            pair = folder.strip(), float(weight)
        except ValueError:
            return None
        return pair if equals and _is_folder(pair[0]) else None

    if "=" not in text:
        return [(text, 1.0)]
    whole = [[(text, 1.0)]] if _is_folder(text) else []
    readings = [*whole, *itertools.islice(_readings(text, 0, cuts, parse), 2)]
    if len(readings) > 1:
        ways = " or ".join(
            ", ".join(f"{folder} with weight {weight:g}" for folder, weight in reading)
            for reading in readings[:2]
        )
        raise UserError(
            f"data.train: {text!r} may be {ways}: all of them are there. Let the folder's name end "
            "in a slash: NAME=1/ for a folder that is called so, NAME/=1 for NAME with weight 1"
        )
    if readings:
        return readings[0]
    return [_weighted(text[a + 1 : b]) for a, b in itertools.pairwise([-1, *cuts])]


def _weighted(part: str) -> tuple[str, float]:
    """Of a text that no folder is there for; whoever opens it says so."""
    folder, _, weight = part.rpartition("=")
    try:
        return folder.strip(), float(weight)
    except ValueError:
        return part, 1.0


def text_names(text: str) -> list[str]:
    """ "a.txt, b.jsonl" → ["a.txt", "b.jsonl"]: whatever find_sources takes, separated by commas.

    Raises UserError where the files that exist allow more than one reading.
    """
    parts = text.split(",")
    cuts = [*itertools.accumulate(len(part) + 1 for part in parts)]
    cuts = [cut - 1 for cut in cuts]
    spans = itertools.combinations(range(len(parts) + 1), 2)
    joined = (",".join(parts[a:b]) for a, b in spans if 2 <= b - a <= _COMMAS + 1)
    if "," not in text or not any(_exists(name) for name in joined):
        return [part.strip() for part in parts if part.strip()]

    def parse(name: str) -> str | None:
        far = "://" in name or name.strip().startswith(("hf:", "tfds:")) or glob.has_magic(name)
        one = "," not in name and (far or not name.strip())
        return name.strip() if one or _exists(name) else None

    readings = list(itertools.islice(_readings(text, 0, cuts, parse), 2))
    if len(readings) > 1:
        first, second = (" and ".join(filter(None, reading)) for reading in readings)
        raise UserError(
            f"{text!r} may be {first} or {second}: all of them are there; write ? in place of a "
            "comma that belongs to a name, or give the folder that the file lies in"
        )
    names = readings[0] if readings else [part.strip() for part in parts]
    return [name for name in names if name]


def _readings(
    text: str, start: int, cuts: list[int], parse: Callable[[str], Value | None]
) -> Iterator[list[Value]]:
    """All ways to cut the text from `start` on so that each part means something."""
    for cut in cuts:
        value = parse(text[start:cut]) if cut >= start else None
        if value is None:
            continue
        if cut == len(text):
            yield [value]
        else:
            for rest in _readings(text, cut + 1, cuts, parse):
                yield [value, *rest]


def _is_folder(name: str) -> bool:
    system, path = file_system(name)
    return bool(name) and system.isdir(path)


def _exists(name: str) -> bool:
    return bool(name.strip()) and os.path.lexists(expanded(name.strip()))
