"""Batches: every example once, padded on the right, in few shapes."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from chopjax.classify.parts import (
    FeaturePart,
    bucket_lengths,
    by_length,
    in_order,
    token_part,
)
from chopjax.classify.prompts import Prompts


@given(st.lists(st.integers(1, 200), min_size=1, max_size=40), st.integers(200, 300))
def test_buckets_hold_all_and_stay_within_the_context(lengths: list[int], longest: int) -> None:
    buckets = bucket_lengths(lengths, longest)
    assert max(lengths) <= buckets[-1] <= longest
    assert buckets == tuple(sorted(set(buckets)))
    assert len(buckets) <= 2


@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=30),
    batch_size=st.integers(1, 7),
    skip=st.integers(0, 3),
)
@settings(max_examples=50, deadline=None)
def test_an_epoch_has_every_example_once(lengths: list[int], batch_size: int, skip: int) -> None:
    ids = [np.arange(1, length + 1 + skip, dtype=np.int32) for length in lengths]
    labels = np.arange(len(lengths), dtype=np.int32)
    part = token_part(Prompts(ids, labels), bucket_lengths(lengths, 96), skip)
    seen = []
    for batch in in_order(part, batch_size, (0, 1)):
        assert batch["tokens"].shape[0] == batch_size
        for row in np.flatnonzero(batch["weights"]):
            number, last = int(batch["labels"][row]), int(batch["last"][row])
            seen.append(number)
            assert batch["tokens"][row, : last + 1].tolist() == ids[number][skip:].tolist()
            assert not batch["tokens"][row, last + 1 :].any()
    assert sorted(seen) == list(range(len(lengths)))
    shapes: dict[int, set[int]] = {}
    looked_at = []
    for numbers, batch in by_length(part):
        looked_at += numbers
        assert batch["labels"][: len(numbers)].tolist() == numbers
        shapes.setdefault(batch["tokens"].shape[1], set()).add(batch["tokens"].shape[0])
    assert sorted(looked_at) == list(range(len(lengths)))
    assert all(len(rows) == 1 for rows in shapes.values())


def test_orders_differ_by_key() -> None:
    part = FeaturePart(np.eye(30, dtype=np.float32), np.arange(30, dtype=np.int32))

    def order(*key: int) -> list[int]:
        return [int(batch["labels"][0]) for batch in in_order(part, 1, key)]

    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(*key)) for key in ((0, 1), (0, 2), (1, 1))}) == 3


def test_features_stand_with_their_labels() -> None:
    part = FeaturePart(np.eye(5, 7, dtype=np.float32), np.arange(5, dtype=np.int32))
    batches = list(in_order(part, 2, (0, 0)))
    for batch in batches:
        for row in np.flatnonzero(batch["weights"]):
            assert batch["features"][row].argmax() == batch["labels"][row]
    assert [batch["weights"].sum() for batch in batches] == [2, 2, 1]
