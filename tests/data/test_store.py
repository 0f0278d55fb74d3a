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


def test_weights_are_a_file_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = [[[1, 2, 3]], [[4, 5]]]
    plain = write_store(tmp_path / "plain", shards)
    assert plain.weighted_tokens is None
    assert record_of(tmp_path / "plain")["format"] == 1
    assert plain.weights(np.array([1, 0]), 3).tolist() == [[1, 1, 1], [1, 1, 1]]
    store = write_store(tmp_path / "a", shards, carries=lambda token: token in (2, 4))
    assert store.weighted_tokens == 2
    assert record_of(tmp_path / "a")["format"] == 2
    assert store.weights(np.array([0, 1]), 4).tolist() == [[0, 1, 0, 1], [1, 0, 1, 0]]
    other = write_store(tmp_path / "b", shards, carries=lambda token: token == 4)
    assert len({plain.fingerprint, store.fingerprint, other.fingerprint}) == 3
    verify(store)
    (tmp_path / "a" / "weights-00000.bin").write_bytes(bytes([1, 1, 1]))
    with pytest.raises(UserError, match=r"checksums differ.*\n  weights-00000\.bin$"):
        open_store(tmp_path / "a")
    monkeypatch.setattr("chopjax.data.store._SMALL", 0)
    (tmp_path / "a" / "weights-00000.bin").write_bytes(bytes([1, 7, 1]))
    with pytest.raises(UserError, match=r"a token carries loss 7 times; .*--verify"):
        open_store(tmp_path / "a").weights(np.array([0]), 3)
    (tmp_path / "a" / "weights-00001.bin").unlink()
    with pytest.raises(UserError, match=r"weights-00001\.bin: no bytes instead of 2"):
        open_store(tmp_path / "a")


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
    with pytest.raises(UserError, match=r"store\.json: damaged: not JSON"):
        open_store(tmp_path / "a")


def test_other_formats_and_other_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no token store .*it holds nothing$"):
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


def record_of(folder: Path) -> dict:
    return json.loads((folder / "store.json").read_text())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "int16"}, "dtype: is 'int16', not one of uint16, uint32"),
        ({"dtype": ">u2"}, "dtype: is '>u2'"),
        ({"dtype": "uint32"}, "8 bytes instead of 16"),
        ({"dtype": 16}, "dtype: is 16"),
        ({"vocab_size": 6}, "largest_id: is 6, with vocab_size 6"),
        ({"vocab_size": 0}, "vocab_size: is 0"),
        ({"vocab_size": 70_000}, "vocab_size: is 70000, with dtype uint16"),
        ({"vocab_size": True}, "vocab_size: is True"),
        ({"largest_id": 5}, "holds a token that is not in 0..5"),
        ({"before": 100}, "before: is 100"),
        ({"after": -1}, "after: is -1"),
        ({"num_tokens": 7}, "num_tokens: is 7, of all shards 6"),
        ({"num_documents": 10**30}, "num_documents: is 1000"),
        ({"text_bytes": -1}, "text_bytes: is -1"),
        ({"shards": {}}, "shards: is {}"),
        ({"shards": [1]}, r"shards\[0\]: 1"),
        ({"shards": [{"tokens": 6}]}, r"shards\[0\]: documents: is missing"),
        ({"sources": ["a"]}, "sources: objects are needed"),
        ({"tokenizer": None}, "tokenizer: is None"),
        ({"weighted_tokens": 3}, "some have weights and some have none"),
        ({"weighted_tokens": "x"}, "weighted_tokens: is 'x'"),
        ({"surprise": 1}, "'surprise': no such field"),
        ({"format": [1]}, r"a token store of format \[1\]"),
        ({"x" * 100_000: "y" * 100_000}, "no such field"),
    ],
)
def test_a_record_that_cannot_be_is_refused_by_field(
    tmp_path: Path, changes: dict, message: str
) -> None:
    folder = tmp_path / "a"
    write_store(folder, [[[1, 2, 3], [4]], [[5, 6]]])
    (folder / "store.json").write_text(json.dumps(record_of(folder) | changes))
    with pytest.raises(UserError, match=message) as caught:
        stream(open_store(folder))
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b"\xff\xfe{}", b"null", b'{"format": 1}'])
def test_a_record_that_is_none(tmp_path: Path, content: bytes) -> None:
    write_store(tmp_path / "a", [[[1, 2, 3]]])
    (tmp_path / "a" / "store.json").write_bytes(content)
    with pytest.raises(UserError, match=r"store\.json: damaged"):
        open_store(tmp_path / "a")


def test_a_folder_in_the_place_of_a_file(tmp_path: Path) -> None:
    for name, message in {
        "store.json": "store.json: cannot be read",
        "tokens-00000.bin": "tokens-00000.bin: no bytes instead of 6",
        "documents-00000.bin": "documents-00000.bin: no bytes instead of 8",
    }.items():
        folder = tmp_path / name
        write_store(folder, [[[1, 2, 3]]])
        (folder / name).unlink()
        (folder / name).mkdir()
        with pytest.raises(UserError, match=message):
            open_store(folder)


@pytest.mark.parametrize(
    "starts", [[0, 3, 2], [0, 2, 2], [1, 2, 3], [0, -1, 3], [0, 3, 6], [0, 0, 0]]
)
@pytest.mark.parametrize("small", [True, False])
def test_documents_out_of_order(
    tmp_path: Path, starts: list[int], small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once in a small store, in a large one when a shard's documents are asked for."""
    folder = tmp_path / "a"
    write_store(folder, [[[1, 2], [3], [4, 5, 6]]])
    (folder / "documents-00000.bin").write_bytes(np.array(starts, "<i8").tobytes())
    if not small:
        monkeypatch.setattr("chopjax.data.store._SMALL", 0)
        store = open_store(folder)
    with pytest.raises(UserError, match=r"documents-00000\.bin: damaged"):
        open_store(folder) if small else store.starts(0, 6)


def test_tokens_that_the_record_does_not_know_are_refused_when_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chopjax.data.store._SMALL", 0)
    folder = tmp_path / "a"
    write_store(folder, [[[1, 2], [3]]])
    (folder / "tokens-00000.bin").write_bytes(np.array([1, 2, 77], "<u2").tobytes())
    store = open_store(folder)
    np.testing.assert_array_equal(store.rows(np.array([0]), 2), [[1, 2]])
    with pytest.raises(UserError, match=r"not in 0\.\.3.*--verify"):
        stream(store)


def test_something_else_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "bin").write_text("x")
    (tmp_path / "other").mkdir()
    for name, message in {
        "corpus.jsonl": r"a text file.*\n  chopjax prepare .*corpus.jsonl --tokenizer",
        "": r"a folder of text.*\n  chopjax prepare",
        "model": "a model, and a token store is needed",
        "bin": "a file, and the folder of a token store",
        "other": "no token store.*it holds nothing",
        "absent": "no such folder",
    }.items():
        with pytest.raises(UserError, match=message):
            open_store(tmp_path / name)
    write_store(tmp_path / "a", [[[1, 2, 3]]])
    with pytest.raises(UserError, match="give the folder that it lies in"):
        open_store(tmp_path / "a" / "store.json")


def test_a_name_that_fsspec_would_take_for_a_chain(tmp_path: Path) -> None:
    write_store(tmp_path / "a::b", [[[1, 2, 3]]])
    assert open_store(tmp_path / "a::b").num_tokens == 3
    assert list(open_stores(tmp_path / "a::b")) == [""]
