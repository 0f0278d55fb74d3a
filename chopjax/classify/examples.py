"""Labelled examples out of whatever `chopjax prepare` reads. No jax."""

from __future__ import annotations

import functools
import hashlib
import json
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from chopjax.classify.templates import Template
from chopjax.data.reader import BadExample, plain
from chopjax.data.sources import find_sources, read_documents
from chopjax.errors import UserError
from chopjax.progress import progress, say

TEXTS = ("text", "sentence")  # the fields that are looked for where none is named


class Example(NamedTuple):
    text: str
    label: int  # which of the template's classes


def read_examples(
    inputs: Sequence[str], template: Template, field: str | None, label_field: str
) -> list[Example]:
    """All of them, in order. field: of the text; None: the first of TEXTS that an example has.

    Raises UserError, with file and line, for what has no text or a label that no word of the
    template has, and where a class has no example at all.
    """
    read = functools.partial(document, template=template, label_field=label_field)
    sources = find_sources(inputs, field or "", read=read)
    name = ", ".join(inputs)
    with progress(f"read {name}", sum(source.size or 0 for source in sources), "B") as bar:
        found = [Example(*json.loads(text)) for text in read_documents(sources, bar.advance)]
    if not found:
        raise UserError(f"{name}: no example in it")
    return found


def document(example: Mapping[str, Any], field: str, template: Template, label_field: str) -> str:
    """An example as a source holds it → "[text, class]". Raises BadExample."""
    if not field:
        field = next((name for name in TEXTS if name in example), TEXTS[0])
    for name, flag in ((field, "--field"), (label_field, "--label-field")):
        if name not in example:
            fields = ", ".join(reprlib.repr(key)[1:-1] for key in list(example)[:20])
            raise BadExample(f"no field {name!r}; name another with {flag} (here: {fields})")
    text, value = plain(example[field]), plain(example[label_field])
    if not isinstance(text, str):
        raise BadExample(f"field {field!r} is {reprlib.repr(text)}, no text; see --field")
    label = template.class_of(value)
    if label is None:
        known = "; ".join(
            f"{word}: {', '.join(values)}"
            for word, values in zip(template.words, template.values, strict=True)
        )
        raise BadExample(
            f"label {reprlib.repr(value)}: no word of template {template.name} has it ({known}); "
            "name another field with --label-field, or give a template of your own"
        )
    return json.dumps([text, label], ensure_ascii=False)


def check_apart(train: Sequence[Example], test: Sequence[Example]) -> None:
    """Say how many texts are tested on that may be trained on. Raises UserError where all are."""
    known = {example.text for example in train}
    both = sum(example.text in known for example in test)
    if both == len(test):
        raise UserError(
            f"--test: each of its {len(test):,} texts is one of --train's; test on others"
        )
    if both:
        say(f"note: {both:,} of the {len(test):,} texts of --test stand in --train, too")


def fingerprint(examples: Sequence[Example]) -> str:
    """sha256 of texts and classes, in their order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps(example).encode() + b"\n")
    return digest.hexdigest()
