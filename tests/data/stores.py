"""Token stores made without a tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from chopjax.data.store import (
    STORE,
    Shard,
    TokenStore,
    as_record,
    documents_file,
    open_store,
    tokens_file,
    weights_file,
)


def write_store(
    folder: Path,
    shards: Sequence[Sequence[Sequence[int]]],
    before: int | None = 0,
    dtype: str = "uint16",
    carries: Callable[[int], bool] | None = None,
) -> TokenStore:
    """shards: of each its documents, of each the token ids, separator included. carries: whether a
    token carries loss; without it the store has no weights."""
    folder.mkdir(parents=True, exist_ok=True)
    written, weighted = [], 0
    for number, documents in enumerate(shards):
        ids = np.array(
            [i for document in documents for i in document], f"<{np.dtype(dtype).str[1:]}"
        )
        ends = np.cumsum([len(document) for document in documents], dtype="<i8")
        starts = np.concatenate([np.zeros(1, "<i8"), ends])[: len(documents)]
        (folder / tokens_file(number)).write_bytes(ids.tobytes())
        (folder / documents_file(number)).write_bytes(starts.tobytes())
        files = [ids, starts]
        if carries is not None:
            files.append(np.array([carries(int(i)) for i in ids], np.uint8))
            (folder / weights_file(number)).write_bytes(files[-1].tobytes())
            weighted += int(files[-1].sum())
        hashes = (hashlib.sha256(data.tobytes()).hexdigest() for data in files)
        written.append(Shard(len(ids), len(documents), *hashes))
    store = TokenStore(
        path=str(folder),
        num_tokens=sum(shard.tokens for shard in written),
        num_documents=sum(shard.documents for shard in written),
        text_bytes=1,
        largest_id=max((i for s in shards for d in s for i in d), default=-1),
        tokenizer="none",
        tokenizer_fingerprint="f" * 64,
        vocab_size=max([99, *(i for s in shards for d in s for i in d)]) + 1,
        dtype=dtype,
        before=before,
        after=None,
        shards=tuple(written),
        sources=(),
        weighted_tokens=None if carries is None else weighted,
    )
    (folder / STORE).write_text(json.dumps(as_record(store)))
    return open_store(folder)


def stream(store: TokenStore) -> np.ndarray:
    """All tokens of a store."""
    return store.rows(np.array([0]), store.num_tokens)[0]
