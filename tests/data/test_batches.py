from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from data.stores import stream, write_store
from hypothesis import given, settings
from hypothesis import strategies as st

from chopjax.data.batch_source import Rows
from chopjax.data.batches import Batches, eval_batches
from chopjax.data.store import TokenStore
from chopjax.errors import UserError


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """997 tokens, each its own number, in documents of 1 to 40, over 3 shards."""
    sizes = np.random.default_rng(0).integers(1, 40, 100)
    edges = [*np.cumsum(sizes)[np.cumsum(sizes) < 997].tolist(), 997]
    documents = [list(range(a, b)) for a, b in zip([0, *edges[:-1]], edges, strict=True)]
    return write_store(
        tmp_path_factory.mktemp("a"), [documents[:20], documents[20:21], documents[21:]]
    )


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return write_store(tmp_path_factory.mktemp("b"), [[list(range(2000, 2300))]])


@pytest.fixture(scope="module")
def third(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return write_store(tmp_path_factory.mktemp("c"), [[list(range(3000, 3050))]])


def assert_same(left: Rows, right: Rows) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert value.dtype == right[name].dtype
        np.testing.assert_array_equal(value, right[name])


SMALL = st.integers(1, 9)


@given(batch=SMALL, length=st.integers(1, 60), seed=st.integers(0, 2**40), masked=st.booleans())
@settings(max_examples=40, deadline=None)
def test_an_epoch_has_every_row_once(
    store: TokenStore, batch: int, length: int, seed: int, masked: bool
) -> None:
    batches = Batches(store, batch, length, seed, masked)
    rows = (store.num_tokens - 1) // length
    steps = -(-2 * rows // batch)
    drawn = np.concatenate([batches.batch(step)["tokens"] for step in range(steps)])
    for epoch in range(2):
        starts = drawn[epoch * rows : (epoch + 1) * rows, 0] // length
        assert sorted(starts.tolist()) == list(range(rows))
    assert batches.epochs(steps) == [steps * batch / rows]
    # In this store each token is its own number, so targets can be told from tokens.
    for step in (0, steps - 1):
        found = batches.batch(step)
        np.testing.assert_array_equal(found["targets"], found["tokens"] + 1)
        assert found["tokens"].shape == (batch, length)


def test_order_depends_on_seed_and_epoch(store: TokenStore) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        rows = 996 // 12
        batches = Batches(store, rows, 12, seed)
        return (batches.batch(epoch)["tokens"][:, 0] // 12).tolist()

    orders = [order(seed, epoch) for seed in (0, 1, 2**32) for epoch in (0, 1)]
    assert len({tuple(o) for o in orders}) == 6
    for found in orders:  # no trace of the old order
        assert abs(np.corrcoef(found, range(len(found)))[0, 1]) < 0.4


def test_the_order_is_the_same_in_every_version(store: TokenStore) -> None:
    """A run resumes on the same batches after an update of chopjax or numpy."""
    first = Batches(store, 8, 10, seed=7).batch(3)["tokens"][:, 0]
    assert (first // 10).tolist() == [19, 38, 53, 67, 42, 94, 4, 6]


@given(
    batch=st.integers(1, 12),
    step=st.integers(0, 1000),
    masked=st.booleans(),
    mixed=st.booleans(),
    cuts=st.lists(st.integers(0, 12), max_size=7),
)
@settings(max_examples=40, deadline=None)
def test_rows_of_processes_make_the_global_batch(
    store: TokenStore,
    other: TokenStore,
    batch: int,
    step: int,
    masked: bool,
    mixed: bool,
    cuts: list[int],
) -> None:
    stores = [(store, 1.0), (other, 2.5)] if mixed else store
    whole = Batches(stores, batch, 16, 3, masked).batch(step)
    edges = sorted({0, batch, *(cut for cut in cuts if cut < batch)})
    # Another object, as in another process.
    batches = Batches(stores, batch, 16, 3, masked)
    parts = [batches.rows(step, slice(a, b)) for a, b in itertools.pairwise(edges)]
    assert_same({name: np.concatenate([p[name] for p in parts]) for name in whole}, whole)
    assert batches.rows(step, slice(0, 0))["tokens"].shape == (0, 16)


@given(weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=3), batch=SMALL)
@settings(max_examples=40, deadline=None)
def test_mixtures_keep_their_shares(
    store: TokenStore, other: TokenStore, third: TokenStore, weights: list[float], batch: int
) -> None:
    pairs = list(zip((store, other, third), weights, strict=False))
    batches = Batches(pairs, batch, 5, 1)
    rows = np.concatenate([batches.batch(step)["tokens"] for step in range(60)])
    belongs = np.digitize(rows[:, 0], [2000, 3000])
    for number, weight in enumerate(weights):
        seen = np.cumsum(belongs == number)
        expected = np.arange(1, len(rows) + 1) * weight / sum(weights)
        assert np.abs(seen - expected).max() <= len(weights)
        # Within a store, its own order without a gap: each epoch has every row once.
        mine = rows[belongs == number, 0]
        count = batches.num_rows[number]
        for epoch in range(len(mine) // count):
            assert len(set(mine[epoch * count : (epoch + 1) * count].tolist())) == count


def test_far_into_a_long_run(store: TokenStore, other: TokenStore) -> None:
    batches = Batches([(store, 1.0), (other, 1e-3)], 512, 16, 0)
    far = batches.batch(10**8)  # 5e10 rows
    assert (far["tokens"] >= 2000).all(axis=1).sum() <= 2
    assert batches.epochs(10**8)[0] == pytest.approx(512e8 / 1.001 / 62, rel=1e-4)


def test_one_segment_as_the_papers_train(store: TokenStore) -> None:
    found = Batches(store, 4, 32).batch(0)
    assert (found["segments"] == 1).all()
    assert (found["weights"] == 1).all()
    np.testing.assert_array_equal(found["positions"], np.tile(np.arange(32), (4, 1)))
    dtypes = [str(value.dtype) for value in found.values()]
    assert dtypes == ["int32", "int32", "int32", "int32", "float32"]


@pytest.mark.parametrize("before", [0, None])
def test_document_masks(tmp_path: Path, before: int | None) -> None:
    shards = [[[1, 2, 3], [4]], [[5, 6], [7, 8, 9, 10]]]
    store = write_store(tmp_path / "a", shards, before=before)
    batches = Batches(store, 1, 9, document_mask=True)
    found = {name: value[0].tolist() for name, value in batches.batch(0).items()}
    assert found["tokens"] == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert found["targets"] == [2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert found["segments"] == [1, 1, 1, 2, 3, 3, 4, 4, 4]
    assert found["positions"] == [0, 1, 2, 0, 0, 1, 0, 1, 2]
    # A document's first token is worth predicting where it is a separator, and only there.
    ends = [1.0] * 9 if before == 0 else [1, 1, 0, 0, 1, 0, 1, 1, 1]
    assert found["weights"] == ends


@given(length=st.integers(2, 50), seed=st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_segments_and_positions_against_a_loop(store: TokenStore, length: int, seed: int) -> None:
    starts = set(store.starts(0, store.num_tokens).tolist())
    found = Batches(store, 5, length, seed, document_mask=True).batch(seed)
    for tokens, segments, positions in zip(
        found["tokens"].tolist(),
        found["segments"].tolist(),
        found["positions"].tolist(),
        strict=True,
    ):
        segment, position = 1, 0
        for t, token in enumerate(tokens):
            if t and token in starts:
                segment, position = segment + 1, 0
            assert (segments[t], positions[t]) == (segment, position)
            position += 1


@given(
    size=st.integers(2, 997),
    batch=SMALL,
    length=st.integers(1, 300),
    masked=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_evaluation_predicts_every_token_once(
    tmp_path_factory: pytest.TempPathFactory, size: int, batch: int, length: int, masked: bool
) -> None:
    documents = [list(range(a, min(a + 7, size))) for a in range(0, size, 7)]
    store = write_store(tmp_path_factory.mktemp("held"), [documents])
    batches = eval_batches(store, batch, length, masked)
    assert len(batches) == len(list(batches)) == -(-(size - 1) // (length * batch))
    seen: list[int] = []
    for found in batches:
        real = found["weights"] > 0
        seen += found["targets"][real].tolist()
        np.testing.assert_array_equal(found["tokens"][real] + 1, found["targets"][real])
        for name in found:
            assert found[name].shape == (batch, length)
            assert not found[name][~real].any()
        assert (found["segments"][real] > 0).all()
    assert seen == list(range(1, size))
    assert_same(batches.rows(len(batches) - 1, slice(0, 1)), _first_row(batches[-1]))
    assert len(batches[:2]) == min(2, len(batches))
    if len(batches) > 1:
        assert_same(batches[1:][0], batches[1])


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """As `store`, numbers that 3 does not divide carrying loss."""
    sizes = np.random.default_rng(1).integers(1, 40, 100)
    edges = [0, *np.cumsum(sizes)[np.cumsum(sizes) < 997].tolist(), 997]
    documents = [list(range(a, b)) for a, b in itertools.pairwise(edges)]
    shards = [documents[:9], [], documents[9:10], documents[10:]]
    folder = tmp_path_factory.mktemp("spoken")
    return write_store(folder, shards, before=None, carries=lambda token: token % 3 > 0)


@given(
    batch=SMALL,
    length=st.integers(1, 300),
    step=st.integers(0, 50),
    masked=st.booleans(),
    mixed=st.booleans(),
    training=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_weights_follow_their_tokens(
    spoken: TokenStore,
    other: TokenStore,
    batch: int,
    length: int,
    step: int,
    masked: bool,
    mixed: bool,
    training: bool,
) -> None:
    """In a mixture, a store without weights has loss on every token."""
    if training:
        length = min(length, 299)
        stores = [(spoken, 2.0), (other, 1.0)] if mixed else spoken
        found = Batches(stores, batch, length, 1, masked).batch(step)
    else:
        batches = eval_batches(spoken, batch, length, masked)
        found = batches[step % len(batches)]
    targets, real = found["targets"], found["segments"] > 0
    expected = real & ((targets % 3 > 0) | (targets >= 2000))
    if masked:  # without a separator, the first token of a document is not to be predicted
        starts = {int(token) for token in spoken.starts(0, spoken.num_tokens)}
        expected &= ~np.isin(targets, list(starts))
    assert found["weights"].dtype == np.float32
    np.testing.assert_array_equal(found["weights"] > 0, expected)
    assert set(np.unique(found["weights"]).tolist()) <= {0.0, 1.0}


def _first_row(batch: Rows) -> Rows:
    return {name: value[:1] for name, value in batch.items()}


def test_mistakes_are_named(store: TokenStore, other: TokenStore, tmp_path: Path) -> None:
    small = write_store(tmp_path / "small", [[[1, 2, 3]]])
    with pytest.raises(UserError, match=r"small: 3 tokens do not fill one row of 5"):
        Batches(small, 1, 4)
    mixtures: Sequence[list[tuple[TokenStore, float]]] = (
        [(store, 0.0)],
        [(store, -1.0), (other, 1.0)],
        [(store, float("nan"))],
        [(store, 1e-9), (other, 1.0)],
    )
    for pairs in mixtures:
        with pytest.raises(UserError, match=r"weight"):
            Batches(pairs, 1, 4)
    with pytest.raises(UserError, match="too short"):
        eval_batches(write_store(tmp_path / "one", [[[1]]]), 1, 4)
    with pytest.raises(IndexError):
        eval_batches(other, 8, 64)[3]


def test_reading_is_whole(store: TokenStore) -> None:
    np.testing.assert_array_equal(stream(store), np.arange(997))
