"""Token stores → batches. A batch is a pure function of the settings and the step.

Nothing is iterated and nothing remembered: resuming at a step, and giving each process its rows
of the global batch, are arithmetic. Names: B batch (rows), T time (tokens of a row), N rows asked
for.

A store's stream of tokens is cut into rows of T + 1 tokens, each sharing its last token with the
first of the next: every token but the first of the store is a target once an epoch. The fewer than
T tokens after the last full row are not trained on.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any, overload

import numpy as np

from chopjax.data.batch_source import Rows
from chopjax.data.permutation import permute
from chopjax.data.store import TokenStore, check_fits
from chopjax.data.top_k import open_top_k
from chopjax.errors import UserError

_NONE = np.empty(0, np.int64)
_SHARES = 1 << 24  # weights of a mixture are rounded to this fraction


class Batches:
    """Training batches from one store, or from several drawn by weight.

    Within a store the rows of each epoch come in a new random order; no row comes twice before all
    have come once. Of any stretch of rows each store has its share to within one row for each
    store there is.
    """

    def __init__(
        self,
        stores: TokenStore | Sequence[tuple[TokenStore, float]],
        batch_size: int,
        sequence_length: int,
        seed: int = 0,
        document_mask: bool = False,
        top_k: int = 0,
    ):
        """stores: one, or (store, weight) pairs; weights are shares of the rows.

        document_mask: give each document segments and positions of its own, so that attention stays
            within it. Otherwise a row is one segment, as the papers train.
        top_k: give each token what a teacher said of it (data/top_k.py), so many likeliest ones.
        """
        pairs = [(stores, 1.0)] if isinstance(stores, TokenStore) else list(stores)
        self.stores = [store for store, _ in pairs]
        self.batch_size = batch_size
        self.sequence_length = sequence_length
        self.seed = seed
        self.document_mask = document_mask
        self.top_k = top_k
        self.said = [
            open_top_k(store, top_k, sequence_length, document_mask)
            for store in self.stores
            if top_k
        ]
        self.num_rows = [rows_in(store, sequence_length) for store in self.stores]
        self.shares = _shares([weight for _, weight in pairs], self.stores)

    @property
    def tokens_per_batch(self) -> int:
        return self.batch_size * self.sequence_length

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Of the stores, with their shares of the rows, and of what a teacher said of them."""
        said = {"top_k": [top_k.fingerprint for top_k in self.said]} if self.top_k else {}
        data = [store.fingerprint for store in self.stores]
        return {"data": data, "shares": self.shares, **said}

    @property
    def record(self) -> list[dict[str, Any]]:
        """The stores, with their shares of the rows."""
        pairs = zip(self.stores, self.shares, strict=True)
        records = [{**_record(store), "share": share} for store, share in pairs]
        for record, said in zip(records, self.said, strict=False):
            record["teacher"] = said.teacher | {"top_k": said.windows.top_k}
        return records

    def check(self, tokenizer: str | None, vocab_size: int) -> None:
        """As batch_source.BatchSource has it."""
        for store in self.stores:
            check_fits(store, tokenizer, vocab_size)
        for said in self.said:
            if said.largest_id >= vocab_size:
                raise UserError(
                    f"{said.path}: its teacher, {said.teacher['name']}, names token "
                    f"{said.largest_id}, and the model has only {vocab_size}"
                )

    def epochs(self, steps: int) -> list[float]:
        """How often each store has been gone through after so many steps."""
        counts = _rows_before(np.array([steps * self.batch_size]), self.shares)
        return [float(c[0]) / rows for c, rows in zip(counts, self.num_rows, strict=True)]

    def batch(self, step: int) -> Rows:
        """The global batch of a step, from 0:

        tokens, targets, segments, positions: int32 [B, T]; weights: float32 [B, T]; with top_k,
        top_tokens: int32 and top_log_probs: float32 [B, T, K].
        Targets are the tokens one to the right. Segments count documents from 1; without
        document_mask all are 1. Weights are those of the targets: 1, but 0 in a store of
        conversations where nobody says what is to be learnt.
        """
        return self.rows(step, slice(None))

    def rows(self, step: int, rows: slice) -> Rows:
        """Some rows of the global batch: what one process needs of it."""
        index_N = np.arange(self.batch_size)[rows] + step * self.batch_size
        store_N = np.empty(len(index_N), np.int64)
        place_N = np.empty(len(index_N), np.int64)
        before = _rows_before(index_N, self.shares)
        after = _rows_before(index_N + 1, self.shares)
        for number, (count_N, next_N) in enumerate(zip(before, after, strict=True)):
            mine_N = next_N > count_N
            store_N[mine_N], place_N[mine_N] = number, count_N[mine_N]
        parts = []
        for number in np.unique(store_N).tolist() or [0]:
            (of_store,) = np.nonzero(store_N == number)
            parts.append((of_store, self._read(number, self._drawn(number, place_N[of_store]))))
        if len(parts) == 1:
            return parts[0][1]
        return _merge(parts, len(index_N))

    def _drawn(self, number: int, place_N: np.ndarray) -> np.ndarray:
        """Which row of a store comes as the place-th from it."""
        epoch_N, index_N = np.divmod(place_N, self.num_rows[number])
        row_N = np.empty_like(index_N)
        for epoch in np.unique(epoch_N).tolist():
            now_N = epoch_N == epoch
            seed = (self.seed, number, epoch)
            row_N[now_N] = permute(index_N[now_N], self.num_rows[number], seed)
        return row_N

    def _read(self, number: int, row_N: np.ndarray) -> Rows:
        """Some rows of a store."""
        store, length = self.stores[number], self.sequence_length
        batch = full_rows(store, row_N, length, self.document_mask)
        if self.top_k:
            ids, log_probs = self.said[number].rows(row_N, self.top_k)
            batch |= {"top_tokens": ids, "top_log_probs": log_probs}
        return batch


@dataclasses.dataclass(frozen=True)
class EvaluationBatches(Sequence[Rows]):
    """A store in order, every token but the very first a target exactly once.

    Batches are read when asked for. The last row is filled up with padding, and the last batch
    with rows of nothing else: tokens, targets, segments, positions and weights 0.
    """

    store: TokenStore
    batch_size: int
    sequence_length: int
    document_mask: bool
    numbers: range  # of the batches; a slice has some of them

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Of the store, and which of its batches."""
        numbers = [self.numbers.start, self.numbers.stop, self.numbers.step]
        return {"data": self.store.fingerprint, "numbers": numbers}

    @property
    def record(self) -> dict[str, Any]:
        """The store."""
        return _record(self.store)

    def check(self, tokenizer: str | None, vocab_size: int) -> None:
        """As batch_source.BatchSource has it."""
        check_fits(self.store, tokenizer, vocab_size)

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Rows: ...
    @overload
    def __getitem__(self, index: slice) -> EvaluationBatches: ...
    def __getitem__(self, index: int | slice) -> Rows | EvaluationBatches:
        """A batch as Batches.batch returns it, or some of the batches."""
        if isinstance(index, slice):
            return dataclasses.replace(self, numbers=self.numbers[index])
        return self.rows(index, slice(None))

    def rows(self, index: int, rows: slice) -> Rows:
        """Some rows of a batch."""
        length, end = self.sequence_length, self.store.num_tokens
        first_row = self.numbers[index] * self.batch_size
        starts_N = (first_row + np.arange(self.batch_size)[rows]) * length
        ends_N = np.minimum(starts_N + length + 1, end)
        tokens = np.zeros((len(starts_N), length + 1), np.int32)
        full_N = ends_N - starts_N == length + 1
        tokens[full_N] = self.store.rows(starts_N[full_N], length + 1)
        for n in np.nonzero(~full_N & (starts_N < end - 1))[0].tolist():
            left = int(ends_N[n] - starts_N[n])
            tokens[n, :left] = self.store.rows(starts_N[n : n + 1], left)
        return _layout(self.store, tokens, starts_N, ends_N, self.document_mask)


def eval_batches(
    store: TokenStore, batch_size: int, sequence_length: int, document_mask: bool = False
) -> EvaluationBatches:
    """All of a held-out store, in a fixed order."""
    if store.num_tokens < 2:
        raise UserError(f"{store.path}: too short to predict anything")
    rows = -(-(store.num_tokens - 1) // sequence_length)
    numbers = range(-(-rows // batch_size))
    return EvaluationBatches(store, batch_size, sequence_length, document_mask, numbers)


def _record(store: TokenStore) -> dict[str, Any]:
    weighted = store.weighted_tokens
    return {
        "name": store.path,
        "fingerprint": store.fingerprint,
        "tokens": store.num_tokens,
        **({} if weighted is None else {"weighted_tokens": weighted}),
        "documents": store.num_documents,
        "sources": [str(source.get("name")) for source in store.sources],
    }


def rows_in(store: TokenStore, sequence_length: int) -> int:
    """Full rows of a store. Raises UserError where there is none."""
    rows = (store.num_tokens - 1) // sequence_length
    if rows < 1:
        raise UserError(
            f"{store.path}: {store.num_tokens} tokens do not fill one row of "
            f"{sequence_length + 1}; prepare more text or shorten the sequences"
        )
    return rows


def full_rows(
    store: TokenStore, row_N: np.ndarray, sequence_length: int, document_mask: bool
) -> Rows:
    """Some of the full rows of a store, by number, as Batches.batch has them."""
    starts_N = row_N * sequence_length
    rows = store.rows(starts_N, sequence_length + 1)
    return _layout(store, rows, starts_N, starts_N + sequence_length + 1, document_mask)


def _layout(
    store: TokenStore,
    rows: np.ndarray,
    starts_N: np.ndarray,
    ends_N: np.ndarray,
    document_mask: bool,
) -> Rows:
    """rows [N, T + 1] of the stream from starts_N up to ends_N → a batch."""
    N, T = len(rows), rows.shape[1] - 1
    inputs_N = np.clip(ends_N - starts_N - 1, 0, T)  # how many tokens have a target
    tokens_NT, targets_NT = rows[:, :-1], rows[:, 1:]
    if not document_mask and (inputs_N == T).all():  # as nearly always
        segments_NT, positions_NT, weights_NT = _constants(N, T)
        if store.weighted_tokens is not None:
            weights_NT = _target_weights(store, starts_N, inputs_N, T)
        return _batch(tokens_NT, targets_NT, segments_NT, positions_NT, weights_NT)
    position_T = np.arange(T, dtype=np.int32)
    real_NT = position_T < inputs_N[:, None]
    if not real_NT.all():
        tokens_NT = tokens_NT * real_NT  # the last token of all is a target and no input
    segments_NT, positions_NT = np.zeros((2, N, T), np.int32)
    weights_NT = _target_weights(store, starts_N, inputs_N, T)
    for n, (start, inputs) in enumerate(zip(starts_N.tolist(), inputs_N.tolist(), strict=True)):
        if not inputs:
            continue
        begins = store.starts(start + 1, start + inputs + 1) - start if document_mask else _NONE
        # Wherever the row begins, that is its first document.
        edges = [0, *(begin for begin in begins.tolist() if begin < inputs), inputs]
        for segment, (first, last) in enumerate(itertools.pairwise(edges), 1):
            segments_NT[n, first:last] = segment
            positions_NT[n, first:last] = position_T[: last - first]
        if store.before is None:
            # The first word of a document cannot be told from the one before. A separator can:
            # predicting it is predicting the end.
            weights_NT[n, begins - 1] = 0
    return _batch(tokens_NT, targets_NT, segments_NT, positions_NT, weights_NT)


def _target_weights(
    store: TokenStore, starts_N: np.ndarray, inputs_N: np.ndarray, T: int
) -> np.ndarray:
    """Of what follows each of the first inputs_N tokens of rows, 0 beyond: float32 [N, T]."""
    if store.weighted_tokens is None:
        return (np.arange(T) < inputs_N[:, None]).astype(np.float32)
    weights_NT = np.zeros((len(starts_N), T), np.float32)
    full_N = inputs_N == T
    weights_NT[full_N] = store.weights(starts_N[full_N] + 1, T)
    for n in np.nonzero(~full_N & (inputs_N > 0))[0].tolist():
        inputs = int(inputs_N[n])
        weights_NT[n, :inputs] = store.weights(starts_N[n : n + 1] + 1, inputs)
    return weights_NT


def _batch(
    tokens: np.ndarray,
    targets: np.ndarray,
    segments: np.ndarray,
    positions: np.ndarray,
    weights: np.ndarray,
) -> Rows:
    return {
        "tokens": tokens,
        "targets": targets,
        "segments": segments,
        "positions": positions,
        "weights": weights,
    }


@functools.lru_cache(maxsize=8)
def _constants(rows: int, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Segments, positions and weights of full rows, which take no memory and cannot be written."""
    shape = (rows, length)
    return (
        np.broadcast_to(np.int32(1), shape),
        np.broadcast_to(np.arange(length, dtype=np.int32), shape),
        np.broadcast_to(np.float32(1), shape),
    )


def _merge(parts: list[tuple[np.ndarray, Rows]], rows: int) -> Rows:
    """Batches of some rows each → one batch in the order of the rows."""
    merged = {
        name: np.empty((rows, *value.shape[1:]), value.dtype) for name, value in parts[0][1].items()
    }
    for of_store, batch in parts:
        for name, value in batch.items():
            merged[name][of_store] = value
    return merged


def _shares(weights: list[float], stores: list[TokenStore]) -> list[int]:
    """Weights as whole numbers that add up to _SHARES."""
    for weight, store in zip(weights, stores, strict=True):
        if not 0 < weight < float("inf"):
            raise UserError(f"{store.path}: weight {weight}; a positive number is needed")
    edges = np.round(np.cumsum(weights) / np.sum(weights) * _SHARES).astype(np.int64)
    shares = np.diff(edges, prepend=0)
    for share, store in zip(shares, stores, strict=True):
        if share < 1:
            raise UserError(f"{store.path}: its weight is too small beside the others")
    whole: list[int] = shares.tolist()
    return whole


def _rows_before(index_N: np.ndarray, shares: list[int]) -> list[np.ndarray]:
    """How many of the first `index` rows of all come from each store.

    Store 0 has row i if that makes ⌊i·share⌋ grow, as even a spacing as there is; the rows that
    remain are counted anew and divided among the other stores in the same way.
    """
    counts, left_N, total = [], index_N, sum(shares)
    for share in shares:
        count_N = left_N * share // total
        counts.append(count_N)
        left_N, total = left_N - count_N, total - share
    return counts
