"""Templates: what stands around an example, and the word for each class. No jax."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from chopjax.disk.files import expanded
from chopjax.errors import UserError, did_you_mean, first_line

OWN = Path(__file__).parent / "templates.yaml"
KEYS = ("text", "classes")
PLACE = "{x}"  # where the example goes
MOST_BYTES = 1 << 20  # of a file


@dataclasses.dataclass(frozen=True)
class Template:
    """text: has PLACE once. words: one a class, in the order of the classes. values: what the data
    calls each class, in lower case, the word included."""

    name: str
    text: str
    words: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]

    @functools.cached_property
    def _classes(self) -> dict[str, int]:
        return {value: label for label, names in enumerate(self.values) for value in names}

    def class_of(self, value: Any) -> int | None:
        """The class of what the data says; None where no word has it."""
        if isinstance(value, bool) or not isinstance(value, str | int):
            return None
        return self._classes.get(_plain(value))

    def query(self, example: str) -> str:
        """What ends where the label word would come."""
        return self.text.replace(PLACE, example)

    def answered(self, example: str, label: int) -> str:
        """The same with the word of this class."""
        return f"{self.query(example)} {self.words[label]}"

    def before(self, demonstrations: Sequence[str]) -> str:
        """What every prompt begins with. demonstrations: an example of each class, in the order of
        the classes; each stands with its word, on a line of its own."""
        shown = [self.answered(text, label) for label, text in enumerate(demonstrations)]
        return "".join(f"{text}\n" for text in shown)

    def prompt(self, demonstrations: Sequence[str], example: str) -> str:
        """The demonstrations, and the example that asks."""
        return self.before(demonstrations) + self.query(example)

    def record(self) -> dict[str, Any]:
        """As a file has it, with its name."""
        classes = dict(zip(self.words, map(list, self.values), strict=True))
        return {"name": self.name, "text": self.text, "classes": classes}


def names() -> list[str]:
    """Of the templates that come with chopjax."""
    return list(_content(OWN))


def read_template(name: str) -> Template:
    """One of `names`, or a file FILE.yaml with `text` and `classes`, whose name is FILE. Raises
    UserError with everything that is wrong."""
    if not name.endswith((".yaml", ".yml")):
        own = _content(OWN)
        if name not in own:
            raise UserError(
                f"--template: {name!r} is none of {', '.join(own)}, nor a file FILE.yaml"
                + did_you_mean(name, own)
            )
        return _template(name, own[name], name)
    path = expanded(name)
    return _template(path.stem, _content(path), name)


def _content(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path}: {path.stat().st_size:,} bytes are no template")
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not YAML ({first_line(error)})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: a template has `text` and `classes`")
    return content


def _template(name: str, content: Any, where: str) -> Template:
    known = content if isinstance(content, dict) else {}
    if unknown := [str(key) for key in known if key not in KEYS]:
        near = did_you_mean(unknown[0], KEYS)
        raise UserError(f"{where}: a template has {' and '.join(KEYS)}, no {unknown[0]!r}{near}")
    text, classes = (known.get(key) for key in KEYS)
    if not isinstance(text, str) or text.count(PLACE) != 1 or text.endswith((PLACE, " ", "\n")):
        raise UserError(
            f"{where}: `text` must have {PLACE} once, where the example goes, and end in what the "
            'label word follows behind a space, such as "Review: {x}\\nSentiment:"'
        )
    if not isinstance(classes, dict) or len(classes) < 2:
        raise UserError(
            f"{where}: `classes` must have two label words or more, each with a list of what the "
            "data calls it: Negative: [0]"
        )
    words, values = [], []
    for place, (word, listed) in enumerate(classes.items()):
        if not isinstance(word, str) or not word or word != word.strip():
            raise UserError(f"{where}: {word!r} is no label word; write it in quotes, as text")
        listed = [place] if listed is None else listed
        if not isinstance(listed, list) or not all(
            isinstance(value, str | int) and not isinstance(value, bool) for value in listed
        ):
            raise UserError(f"{where}: {word}: a list of texts and whole numbers is needed")
        words.append(word)
        values.append(tuple(dict.fromkeys(map(_plain, [*listed, word]))))
    several = [value for own in values for value in own]
    if twice := sorted({value for value in several if several.count(value) > 1}):
        raise UserError(f"{where}: {', '.join(twice)}: more than one class is called that")
    return Template(name, text, tuple(words), tuple(values))


def _plain(value: str | int) -> str:
    return str(value).strip().lower()
