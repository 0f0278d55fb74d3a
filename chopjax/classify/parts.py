"""Examples as arrays of few shapes: prompts padded to the length of their bucket, or features.

Axes: B batch, T time, E width of what the head reads, X examples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from chopjax.classify.prompts import Prompts

# So many of all prompts fit into each of the lengths that they are padded to. Every length has
# programs of its own.
SHARES = (0.8, 1.0)
MULTIPLE = 16  # of tokens
TOKENS, ROWS = 4096, 64  # of a batch that is only looked at

Batch = dict[str, np.ndarray]


class Part(Protocol):
    """Examples that batches are made of."""

    @property
    def labels_X(self) -> np.ndarray: ...

    @property
    def lengths_X(self) -> np.ndarray:
        """What each is padded to."""

    def batch(self, numbers: Sequence[int], rows: int) -> Batch:
        """These examples, as the longest of them is padded, and `labels` [B] int32 and `weights`
        [B] float32: 1, and 0 in the rows that are there to make B = rows."""


class TokenPart(NamedTuple):
    """Prompts. A batch has `tokens` [B, T] int32 and `last` [B] int32, where each ends."""

    ids: Sequence[np.ndarray]
    labels_X: np.ndarray
    lengths_X: np.ndarray

    def batch(self, numbers: Sequence[int], rows: int) -> Batch:
        length = max(int(self.lengths_X[number]) for number in numbers)
        batch = _labels(self.labels_X, numbers, rows) | {
            "tokens": np.zeros((rows, length), np.int32),
            "last": np.zeros(rows, np.int32),
        }
        for row, number in enumerate(numbers):
            ids = self.ids[number]
            batch["tokens"][row, : len(ids)] = ids
            batch["last"][row] = len(ids) - 1
        return batch


class Shown(NamedTuple):
    """What all prompts of a seed begin with: the first `length` of the tokens [1, S]; the others
    are padding."""

    tokens_1S: np.ndarray  # int32
    length: np.int32


class FeaturePart(NamedTuple):
    """What the head reads of each, computed already. A batch has `features` [B, E] float32."""

    features_XE: np.ndarray
    labels_X: np.ndarray

    @property
    def lengths_X(self) -> np.ndarray:
        return np.ones(len(self.labels_X), np.int64)

    def batch(self, numbers: Sequence[int], rows: int) -> Batch:
        features = np.zeros((rows, self.features_XE.shape[1]), np.float32)
        features[: len(numbers)] = self.features_XE[list(numbers)]
        return _labels(self.labels_X, numbers, rows) | {"features": features}


def _labels(labels_X: np.ndarray, numbers: Sequence[int], rows: int) -> Batch:
    labels, weights = np.zeros(rows, np.int32), np.zeros(rows, np.float32)
    labels[: len(numbers)] = labels_X[list(numbers)]
    weights[: len(numbers)] = 1
    return {"labels": labels, "weights": weights}


def bucket_lengths(lengths: Iterable[int], longest: int) -> tuple[int, ...]:
    """The lengths that prompts are padded to: those at SHARES, rounded up, `longest` at most."""
    ordered = sorted(lengths)
    places = [math.ceil(len(ordered) * share) - 1 for share in SHARES]
    rounded = {min(rounded_up(ordered[max(place, 0)]), longest) for place in places}
    return tuple(sorted(rounded))


def rounded_up(length: int) -> int:
    return -(-length // MULTIPLE) * MULTIPLE


def shown(prompts: Prompts, shared: int, slots: int) -> Shown:
    """The first ids, which all prompts share, padded to `slots`."""
    tokens_1S = np.zeros((1, slots), np.int32)
    tokens_1S[0, :shared] = prompts.ids[0][:shared]
    return Shown(tokens_1S, np.int32(shared))


def token_part(prompts: Prompts, buckets: Sequence[int], skip: int = 0) -> TokenPart:
    """skip: so many first ids of each are left out."""
    ids = [each[skip:] for each in prompts.ids]
    places = np.searchsorted(buckets, [len(each) for each in ids])
    return TokenPart(ids, prompts.labels, np.array(buckets)[places])


def in_order(part: Part, batch_size: int, key: Sequence[int]) -> Iterator[Batch]:
    """One epoch: all examples in an order that `key` decides. A last batch that is not full has
    rows without weight."""
    order = np.random.default_rng(list(key)).permutation(len(part.labels_X)).tolist()
    for start in range(0, len(order), batch_size):
        yield part.batch(order[start : start + batch_size], batch_size)


def by_length(part: Part) -> Iterator[tuple[list[int], Batch]]:
    """All examples once, those of a length together, with their numbers; the batches of a length
    are of one shape whatever the part."""
    for length in np.unique(part.lengths_X).tolist():
        numbers = np.flatnonzero(part.lengths_X == length).tolist()
        rows = max(1, min(ROWS, TOKENS // length))
        for start in range(0, len(numbers), rows):
            some = numbers[start : start + rows]
            yield some, part.batch(some, rows)
