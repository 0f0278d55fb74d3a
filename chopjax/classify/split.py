"""Which examples are shown, trained on, held out and tested on: a function of the seed. No jax."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from chopjax.classify.examples import Example
from chopjax.classify.templates import Template
from chopjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class SplitSettings:
    """How many examples there are of each kind, at most."""

    per_class: int = 200  # trained on, of each class
    held_out: int = 1000  # of the training file, which decide when training stops
    max_test: int = 1000  # tested on


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples by their numbers: `test` in the test file, all others in the training file."""

    demonstrations: tuple[int, ...]  # one a class, in the order of the classes
    train: tuple[int, ...]
    held_out: tuple[int, ...]
    test: tuple[int, ...]


def draw(
    train: Sequence[Example],
    test: Sequence[Example],
    template: Template,
    settings: SplitSettings,
    seed: int,
) -> Split:
    """The split of a seed, as the authors draw it (GNNavi's code): the training file is shuffled,
    its first examples are held out, and of the rest the first of each class is its demonstration
    and the next ones are trained on. Raises UserError where a class has none of either."""
    order = np.random.default_rng([seed, 0]).permutation(len(train)).tolist()
    held_out, rest = order[: settings.held_out], order[settings.held_out :]
    of_class = [
        [number for number in rest if train[number].label == label]
        for label in range(len(template.words))
    ]
    for word, own in zip(template.words, of_class, strict=True):
        if len(own) < 2:
            raise UserError(
                f"class {word}: {len(own)} of the {len(rest)} training examples that are left "
                f"behind {len(held_out)} held out (seed {seed}); a demonstration and one to train "
                "on are needed. Give more examples, or a smaller --held-out"
            )
    trained = [number for own in of_class for number in own[1 : 1 + settings.per_class]]
    chosen = np.random.default_rng([seed, 1]).permutation(len(test))[: settings.max_test]
    return Split(
        tuple(own[0] for own in of_class), tuple(trained), tuple(held_out), tuple(chosen.tolist())
    )
