from __future__ import annotations

import json
from pathlib import Path

import fsspec
import numpy as np
import pytest
from data.stores import stream, write_store
from hypothesis import given, settings
from hypothesis import strategies as st

from chopjax.data.store import check_fits, open_store, open_stores, verify
from chopjax.errors import UserError

DOCUMENT = st.lists(st.integers(0, 99), min_size=1, max_size=8)
SHARDS = st.lists(st.lists(DOCUMENT, max_size=5), min_size=1, max_size=5)


@given(shards=SHARDS, dtype=st.sampled_from(["uint16", "uint32"]), data=st.data())
@settings(max_examples=60, deadline=None)
def test_rows_and_document_starts_across_shards(
    tmp_path_factory: pytest.TempPathFactory,
    shards: list[list[list[int]]],
    dtype: str,
    data: st.DataObject,
) -> None:
    documents = [document for shard in shards for document in shard]
    tokens = np.array([i for document in documents for i in document], np.int32)
    store = write_store(tmp_path_factory.mktemp("store"), shards, dtype=dtype)
    assert (store.num_tokens, store.num_documents) == (len(tokens), len(documents))
    if not len(tokens):
        return
    length = data.draw(st.integers(1, len(tokens)))
    places = st.lists(st.integers(0, len(tokens) - length), max_size=4)
    places_N = np.array(data.draw(places), np.int64)
    rows = store.rows(places_N, length)
    assert rows.dtype == np.int32
    np.testing.assert_array_equal(
        rows, [tokens[p : p + length] for p in places_N] or np.empty((0, length))
    )
    begins = np.cumsum([0, *(len(document) for document in documents)])[:-1]
    start = data.draw(st.integers(0, len(tokens) - 1))
    stop = data.draw(st.integers(start + 1, len(tokens)))
    expected = begins[(start <= begins) & (begins < stop)]
    np.testing.assert_array_equal(store.starts(start, stop), expected)


def test_a_store_behind_a_url_reads_the_same(tmp_path: Path) -> None:
    local = write_store(tmp_path / "a", [[[1, 2, 3], [4]], [], [[5, 6], [7, 8, 9, 10]]])
    fsspec.filesystem("memory").put(str(tmp_path / "a"), "/bucket/a", recursive=True)
    remote = open_store("memory://bucket/a/")
    np.testing.assert_array_equal(stream(remote), stream(local))
    places_N = np.array([5, 0, 2])
    np.testing.assert_array_equal(remote.rows(places_N, 4), local.rows(places_N, 4))
    np.testing.assert_array_equal(remote.starts(1, 9), local.starts(1, 9))
    assert remote.fingerprint == local.fingerprint
    verify(remote)


def test_the_fingerprint_is_of_the_tokens(tmp_path: Path) -> None:
    first = write_store(tmp_path / "a", [[[1, 2, 3]], [[4]]])
    assert write_store(tmp_path / "b", [[[1, 2, 3]], [[4]]]).fingerprint == first.fingerprint
    others = [[[[1, 2, 4]], [[4]]], [[[1], [2, 3]], [[4]]], [[[4]], [[1, 2, 3]]]]
    found = {write_store(tmp_path / str(n), s).fingerprint for n, s in enumerate(others)}
    assert len(found | {first.fingerprint}) == 4


def test_damage_is_named(tmp_path: Path) -> None:
    store = write_store(tmp_path / "a", [[[1, 2, 3]], [[4, 5, 6]]])
    verify(store)
    tokens = tmp_path / "a" / "tokens-00001.bin"
    flipped = bytearray(tokens.read_bytes())
    flipped[2] ^= 1
    tokens.write_bytes(flipped)
    with pytest.raises(UserError, match=r"checksums differ.*--overwrite:\n  tokens-00001\.bin$"):
        verify(open_store(tmp_path / "a"))
    tokens.write_bytes(flipped[:-2])
    with pytest.raises(UserError, match=r"damaged.*\n  tokens-00001\.bin: 4 bytes instead of 6"):
        open_store(tmp_path / "a")
    (tmp_path / "a" / "documents-00000.bin").unlink()
    with pytest.raises(UserError, match=r"documents-00000\.bin: no bytes instead of 8"):
        open_store(tmp_path / "a")
    (tmp_path / "a" / "store.json").write_text("{")
    with pytest.raises(UserError, match=r"store\.json: cannot be read"):
        open_store(tmp_path / "a")


def test_other_formats_and_other_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no token store \(`chopjax prepare` makes one\)$"):
        open_store(tmp_path)
    store = write_store(tmp_path / "both" / "train", [[[1, 2]]])
    write_store(tmp_path / "both" / "held_out", [[[3]]])
    with pytest.raises(UserError, match=r"it holds .*both/train and .*both/held_out"):
        open_store(tmp_path / "both")
    assert list(open_stores(tmp_path / "both")) == ["train", "held_out"]
    assert list(open_stores(tmp_path / "both" / "train")) == [""]
    path = Path(store.path) / "store.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 9}))
    with pytest.raises(UserError, match="format 9"):
        open_store(store.path)
    path.write_text('{"format": 1}')
    with pytest.raises(UserError, match=r"store\.json: damaged"):
        open_store(store.path)


def test_a_store_that_does_not_fit_the_model(tmp_path: Path) -> None:
    store = write_store(tmp_path / "a", [[[1, 99]]])
    check_fits(store, "f" * 64, 100)
    check_fits(store, None, 100)
    with pytest.raises(UserError, match=r"holds token 99, the model has only 99"):
        check_fits(store, "f" * 64, 99)
    with pytest.raises(UserError, match=r"another tokenizer.*ffffffffffff.*eeeeeeeeeeee"):
        check_fits(store, "e" * 64, 100)
