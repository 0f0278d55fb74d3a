"""Prompts as ids: what all share, what leaks nowhere, and what cannot be asked."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classify import material
from hypothesis import given, settings
from hypothesis import strategies as st

from chopjax.classify.examples import Example
from chopjax.classify.prompts import Material, common, label_ids, make_material, not_longer
from chopjax.classify.split import Split
from chopjax.classify.templates import Template, read_template
from chopjax.data.tokenizer import Tokenizer, load_tokenizer
from chopjax.errors import UserError

SPLIT = Split((0, 1, 2), (3, 4, 5), (6, 7), (0, 1))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Template]:
    folder = material.write(tmp_path_factory.mktemp("toy"))
    return load_tokenizer(folder / "model"), read_template(str(folder / "toy.yaml"))


def rows(*numbers: int) -> list[Example]:
    return [Example(str(r["text"]), int(r["label"])) for r in map(material.example, numbers)]


def made(toy: tuple[Tokenizer, Template], train: list[Example], longest: int = 999) -> Material:
    return make_material(*toy, train, rows(50, 51), SPLIT, longest)


def every(own: Material) -> list[list[int]]:
    return [ids.tolist() for part in own[:3] for ids in part.ids]


def test_what_is_shared_is_the_demonstrations(toy: tuple[Tokenizer, Template]) -> None:
    tokenizer, template = toy
    train = rows(*range(8))
    own = made(toy, train)
    shown = template.prompt([example.text for example in train[:3]], "")
    (head,) = tokenizer.encode_batch([shown.rpartition("\n")[0].rpartition("\n")[0]])
    for ids in every(own):
        assert ids[: len(head)] == head
    assert own.shared >= len(head)
    assert {tuple(ids[: own.shared]) for ids in every(own)} == {tuple(every(own)[0][: own.shared])}
    assert len({ids[own.shared] for ids in every(own)}) > 1


@given(labels=st.lists(st.integers(0, 2), min_size=5, max_size=5))
@settings(max_examples=20, deadline=None)
def test_no_label_of_an_example_is_in_its_prompt(
    toy: tuple[Tokenizer, Template], labels: list[int]
) -> None:
    """Demonstrations alone have labels: whatever the others' are, the ids are the same."""
    train = rows(*range(8))
    other = [*train[:3], *(e._replace(label=n) for e, n in zip(train[3:], labels, strict=True))]
    one, two = made(toy, train), made(toy, other)
    assert every(one) == every(two)
    assert two.train.labels.tolist() == labels[:3]
    assert two.held_out.labels.tolist() == labels[3:]


@given(order=st.permutations(range(3)))
@settings(max_examples=10, deadline=None)
def test_label_ids_follow_their_words(toy: tuple[Tokenizer, Template], order: list[int]) -> None:
    """Whichever order the classes have, a word's id is its own."""
    tokenizer, template = toy
    turned = dataclasses.replace(
        template,
        words=tuple(template.words[n] for n in order),
        values=tuple(template.values[n] for n in order),
    )
    plain = label_ids(tokenizer, template, template.query("x"))
    assert label_ids(tokenizer, turned, template.query("x")) == tuple(plain[n] for n in order)


def test_words_of_one_beginning(toy: tuple[Tokenizer, Template]) -> None:
    tokenizer, template = toy
    same = dataclasses.replace(template, words=("cat", "dog", "cats"))
    with pytest.raises(UserError, match=r"begin with the same token.*\n  cat and cats: \d+ \('"):
        label_ids(tokenizer, same, template.query("x"))


def test_a_tokenizer_that_joins_prompt_and_word(tinystories: Path) -> None:
    """Its merges reach over spaces."""
    template = Template("up", "{x} once upon a", ("time", "day"), (("time",), ("day",)))
    with pytest.raises(UserError, match="does not split 'time' from what stands before it"):
        label_ids(load_tokenizer(tinystories), template, template.query("So"))


def test_bos_stands_before_a_prompt_where_the_tokenizer_has_it(shared: Path) -> None:
    import transformers

    folder = shared / "models" / "llama2-tokenizer"
    template = read_template("sst2")
    tokenizer = load_tokenizer(folder)
    theirs: Any = transformers.AutoTokenizer.from_pretrained(folder)
    train = [Example("dull", 0), Example("fine", 1), Example("so so", 0), Example("great", 1)]
    own = make_material(tokenizer, template, train, train, Split((0, 1), (2,), (3,), (0,)), 99)
    expected = theirs(template.prompt(["dull", "fine"], "so so"))["input_ids"]
    assert own.train.ids[0].tolist() == expected
    assert expected[0] == theirs.bos_token_id
    # Not the bare space that the word alone would begin with.
    pieces = theirs.convert_ids_to_tokens(label_ids(tokenizer, template, template.query("dull")))
    assert [piece.strip("▁")[:3] for piece in pieces] == ["Neg", "Pos"]


def test_a_prompt_longer_than_the_context(toy: tuple[Tokenizer, Template]) -> None:
    train = rows(*range(8))
    longest = max(map(len, every(made(toy, train))))
    assert made(toy, train, longest).shared
    place = [len(ids) for ids in every(made(toy, train))].index(longest)
    number = [*SPLIT.train, *SPLIT.held_out, *SPLIT.test][place]
    said = rf"example {number + 1} \(.*\): its prompt has {longest} tokens, 1 more than the"
    with pytest.raises(UserError, match=said):
        made(toy, train, longest - 1)


def test_texts_of_the_advised_length_fit(toy: tuple[Tokenizer, Template]) -> None:
    tokenizer, _ = toy
    train = [
        example._replace(text=example.text * (1 + n)) for n, example in enumerate(rows(*[0] * 8))
    ]
    room = 100
    with pytest.raises(UserError, match=r"with --max-tokens \d+ every prompt fits") as error:
        made(toy, train, room)
    advised = int(str(error.value).partition("--max-tokens ")[2].split()[0])
    short = not_longer(tokenizer, train, advised)
    assert 0 < len(short) < len(train)
    longest = max(short, key=lambda example: len(example.text))
    assert len(tokenizer.encode_batch([longest.text])[0]) <= advised
    assert made(toy, [longest] * 8, room).shared
    with pytest.raises(UserError, match="Give a template with fewer words"):
        made(toy, train, 5)


def test_common_ids_leave_one() -> None:
    arrays = [np.array(ids, np.int32) for ids in ([1, 2, 3], [1, 2, 3, 4], [1, 2, 5, 4])]
    assert common(arrays) == 2
    assert common(arrays[:2]) == 2  # of the first, one is left
    assert common([np.array([1, 2]), np.array([3, 2])]) == 0
