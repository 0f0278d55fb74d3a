"""Prompts as token ids, and which token each label word is.

Axes: C classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from chopjax.classify.examples import Example
from chopjax.classify.split import Split
from chopjax.classify.templates import Template
from chopjax.data.tokenizer import Tokenizer
from chopjax.errors import UserError, cut, escaped, listing

BATCH = 1024  # texts that are encoded at a time


class Prompts(NamedTuple):
    """ids: of each prompt, int32. labels: its class, int32."""

    ids: list[np.ndarray]
    labels: np.ndarray


class Material(NamedTuple):
    """What one seed works on. before: the text of the demonstrations, which every prompt begins
    with. shared: so many first ids are the same in all prompts; behind them each has one at least.
    """

    train: Prompts
    held_out: Prompts
    test: Prompts
    before: str
    shared: int


def label_ids(tokenizer: Tokenizer, template: Template, prompt: str) -> tuple[int, ...]:
    """The id of each class [C]: the one that follows those of the prompt when prompt and word are
    encoded together. Of a word of several tokens it is the first.

    Raises UserError where a tokenizer joins the end of the prompt with the word, and where two
    words begin with the same token.
    """
    alone = _encode(tokenizer, [prompt])[0].tolist()
    joint = _encode(tokenizer, [f"{prompt} {word}" for word in template.words])
    found = []
    for word, ids in zip(template.words, joint, strict=True):
        if len(ids) <= len(alone) or ids[: len(alone)].tolist() != alone:
            raise UserError(
                f"template {template.name}: the tokenizer does not split {word!r} from what stands "
                "before it, so that no token can be predicted there; end the text otherwise, or "
                "choose another word, in a template of your own"
            )
        found.append(int(ids[len(alone)]))
    same = [
        f"{one} and {other}: {found[a]} ({tokenizer.backend.id_to_token(found[a])!r})"
        for (a, one), (b, other) in itertools.combinations(enumerate(template.words), 2)
        if found[a] == found[b]
    ]
    if same:
        raise UserError(
            f"template {template.name}: label words that begin with the same token of this model's "
            f"tokenizer, and cannot be told apart:\n{listing(same)}\nChoose other words in a "
            "template of your own (--template FILE.yaml)"
        )
    return tuple(found)


def not_longer(tokenizer: Tokenizer, examples: Sequence[Example], most: int) -> list[Example]:
    """Those whose text has at most so many tokens, in their order."""
    kept = []
    for start in range(0, len(examples), BATCH):
        some = examples[start : start + BATCH]
        encoded = tokenizer.encode_batch([each.text for each in some])
        kept += [each for each, ids in zip(some, encoded, strict=True) if len(ids) <= most]
    return kept


def make_material(
    tokenizer: Tokenizer,
    template: Template,
    train: Sequence[Example],
    test: Sequence[Example],
    split: Split,
    longest: int,
    advance: Callable[[int], None] = lambda count: None,
) -> Material:
    """The prompts of a seed. longest: ids that a prompt may have.

    Raises UserError for a longer one, with the example and by how much. advance: told of prompts
    that are done.
    """
    shown = [train[number].text for number in split.demonstrations]

    def prompts(part: str, examples: Sequence[Example], numbers: Sequence[int]) -> Prompts:
        ids: list[np.ndarray] = []
        for start in range(0, len(numbers), BATCH):
            some = numbers[start : start + BATCH]
            ids += _encode(tokenizer, [template.prompt(shown, examples[n].text) for n in some])
            advance(len(some))
        for number, each in zip(numbers, ids, strict=True):
            if len(each) > longest:
                said = _too_long(part, number, examples[number], len(each), longest)
                raise UserError(f"{said}. {_advice(tokenizer, template, longest)}")
        labels = np.array([examples[number].label for number in numbers], np.int32)
        return Prompts(ids, labels)

    material = Material(
        prompts("training", train, split.train),
        prompts("training", train, split.held_out),
        prompts("test", test, split.test),
        template.before(shown),
        shared=0,
    )
    every = [*material.train.ids, *material.held_out.ids, *material.test.ids]
    return material._replace(shared=common(every))


def common(sequences: Sequence[np.ndarray]) -> int:
    """How many first ids are the same in all, one at least left out at the end of each."""
    first = sequences[0]
    length = min(map(len, sequences)) - 1
    for other in sequences[1:]:
        differ = np.flatnonzero(first[:length] != other[:length])
        length = int(differ[0]) if len(differ) else length
    return length


def _too_long(part: str, number: int, example: Example, length: int, longest: int) -> str:
    return (
        f"{part} example {number + 1} ({cut(escaped(example.text), 60)}): its prompt has {length} "
        f"tokens, {length - longest} more than the {longest} that there is room for"
    )


def _advice(tokenizer: Tokenizer, template: Template, longest: int) -> str:
    """How long texts may be for all prompts to fit: the room that a template without text leaves,
    divided among demonstrations and query."""
    classes = len(template.words)
    (empty,) = _encode(tokenizer, [template.prompt([""] * classes, "")])
    each = (longest - len(empty)) // (classes + 1)
    if each < 1:
        return "Give a template with fewer words, or a model with a longer context"
    return (
        f"Leave long examples out (with --max-tokens {each} every prompt fits), give a template "
        "with fewer words, or a model with a longer context"
    )


def _encode(tokenizer: Tokenizer, texts: list[str]) -> list[np.ndarray]:
    """As transformers' tokenizer does by default: with its BOS, where it puts one."""
    encoded = tokenizer.encode_batch(texts, add_special_tokens=True)
    return [np.array(ids, np.int32) for ids in encoded]
