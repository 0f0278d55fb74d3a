"""What a teacher said, on disk and in batches. The teacher here says what it was asked."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from data.stores import stream, write_store
from hypothesis import given, settings
from hypothesis import strategies as st

from chopjax.data import top_k_writer
from chopjax.data.batches import Batches, rows_in
from chopjax.data.store import TokenStore
from chopjax.data.top_k import TopK, find_top_k, open_top_k, verify
from chopjax.data.top_k_writer import Answers, windows_of, write_top_k
from chopjax.errors import UserError

T, K = 5, 3
TEACHER = {"name": "a/teacher", "revision": None, "weights": "w" * 64, "dtype": "float32"}
Asked = list[range]


def answers(store: TokenStore, length: int, k: int, asked: Asked, stop_at: int = 10**9) -> Answers:
    """The next token and those after it, at log-probabilities that say where they stand."""
    tokens = stream(store)

    def answer(rows: range) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        asked.append(rows)
        for row in rows:
            if row == stop_at:
                raise KeyboardInterrupt
            targets = tokens[row * length + 1 :][:length].astype(np.int32)
            ids = targets[None, :, None] + np.arange(k, dtype=np.int32)
            yield ids, np.float16(-np.arange(1, k + 1) - row % 7) * np.ones_like(ids, np.float16)

    return answer


def ask(store: TokenStore, asked: Asked, teacher: dict = TEACHER, **changes: object) -> TopK:
    """changes: of what is asked; stop_at, overwrite."""
    stop_at, overwrite = changes.pop("stop_at", 10**9), changes.pop("overwrite", False)
    question = {"top_k": K, "sequence_length": T, "mask_documents": False, "vocab": 5000} | changes
    length, k = question["sequence_length"], question["top_k"]
    windows = windows_of(store, rows_in(store, length), **question)  # type: ignore[arg-type]
    ready = answers(store, length, k, asked, stop_at)  # type: ignore[arg-type]
    return write_top_k(Path(store.path), store, windows, teacher, lambda: ready, bool(overwrite))


def store_in(folder: Path, first: int = 0, count: int = 71) -> TokenStore:
    ids = list(range(first, first + count))
    return write_store(folder, [[ids[:20]], [ids[20:40], ids[40:]]])


@pytest.fixture
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top_k_writer, "MIN_SHARD_BYTES", 4 * T * K * 4)  # 4 rows


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> list[TokenStore]:
    """Two stores of several shards each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(top_k_writer, "MIN_SHARD_BYTES", 4 * T * K * 4)
        stores = [
            store_in(tmp_path_factory.mktemp("a")),
            store_in(tmp_path_factory.mktemp("b"), 99),
        ]
        for store in stores:
            assert len(ask(store, []).shards) == 4
    return stores


@given(
    batch=st.integers(1, 7),
    step=st.integers(0, 40),
    k=st.integers(1, K),
    mixed=st.booleans(),
    first=st.integers(0, 6),
)
@settings(max_examples=40, deadline=None)
def test_what_was_said_follows_its_tokens(
    taught: list[TokenStore], batch: int, step: int, k: int, mixed: bool, first: int
) -> None:
    pairs = [(store, 1.0 + number) for number, store in enumerate(taught[: 1 + mixed])]
    batches = Batches(pairs, batch, T, 3, top_k=k)
    found = batches.rows(step, slice(first, None))
    plain = Batches(pairs, batch, T, 3).rows(step, slice(first, None))
    assert {name: value.shape for name, value in found.items() if name not in plain} == {
        "top_tokens": (max(0, batch - first), T, k),
        "top_log_probs": (max(0, batch - first), T, k),
    }
    for name, value in plain.items():
        np.testing.assert_array_equal(found[name], value)
    assert [found[name].dtype for name in ("top_tokens", "top_log_probs")] == [np.int32, np.float32]
    expected = found["targets"][..., None] + np.arange(k)
    np.testing.assert_array_equal(found["top_tokens"], expected)
    rows = found["tokens"][:, 0] % 99 // T
    assert (found["top_log_probs"] == -np.arange(1, k + 1) - (rows % 7)[:, None, None]).all()


@pytest.mark.usefixtures("_small_shards")
def test_a_run_knows_what_its_teacher_said(taught: list[TokenStore], tmp_path: Path) -> None:
    batches = Batches(taught[0], 2, T, top_k=2)
    said = find_top_k(taught[0])
    assert said is not None
    plain = Batches(taught[0], 2, T)
    assert batches.fingerprint == plain.fingerprint | {"top_k": [said.fingerprint]}
    assert batches.record == [plain.record[0] | {"teacher": TEACHER | {"top_k": K}}]
    batches.check(None, 73)
    with pytest.raises(UserError, match="a/teacher, names token 72, and the model has only 72"):
        batches.check(None, 72)
    other = store_in(tmp_path / "other")
    assert ask(other, []).fingerprint == said.fingerprint
    ask(other, [], TEACHER | {"weights": "v" * 64}, vocab=70_000, overwrite=True)
    again = find_top_k(other)
    assert again is not None
    assert again.windows.dtype == "uint32"
    assert again.fingerprint != said.fingerprint
    np.testing.assert_array_equal(again.rows(np.array([3]), 2)[0], said.rows(np.array([3]), 2)[0])


def test_other_windows_are_refused(taught: list[TokenStore], tmp_path: Path) -> None:
    store = taught[0]
    for arguments, message in (
        ((K, 4, False), "sequence_length: 5 there, 4 in training"),
        ((K, T, True), "mask_documents: False there, True in training"),
        ((K + 1, T, False), "top_k: 3 there, 4 in training"),
    ):
        with pytest.raises(UserError, match=rf"asked otherwise \({message}\); .*--overwrite"):
            open_top_k(store, *arguments)
    bare = store_in(tmp_path / "bare")
    with pytest.raises(UserError, match=r"no teacher was asked .*--top-k 3 --sequence-length 5"):
        Batches(bare, 1, T, top_k=K)
    (Path(bare.path) / "top_k").symlink_to(f"{taught[1].path}/top_k")
    with pytest.raises(UserError, match="of other tokens than this store's"):
        Batches(bare, 1, T, top_k=K)


@pytest.mark.usefixtures("_small_shards")
def test_what_is_finished_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, asked = store_in(tmp_path / "a"), list[range]()
    with pytest.raises(KeyboardInterrupt):
        ask(store, asked, stop_at=9)
    assert find_top_k(store) is None
    work = tmp_path / "a.top_k.partial"
    assert sorted(path.name for path in (work / "records").iterdir()) == [
        "00000.json",
        "00001.json",
    ]
    first = capsys.readouterr().err
    assert "14 windows of 5 tokens, the 3 likeliest next tokens of each token: 840 bytes\n" in first
    assert f"what is finished is kept in {work}" in first
    with pytest.raises(UserError, match=r"unfinished work with other settings.*\n  top_k: was 3"):
        ask(store, asked, top_k=2)
    with pytest.raises(UserError, match="teacher: was www"):
        ask(store, asked, TEACHER | {"weights": "other"})
    (work / "records" / "00000.json").unlink()
    asked.clear()
    said = ask(store, asked)
    assert asked == [range(4), range(8, 12), range(12, 14)]
    assert "840 bytes, 240 of them there already" in capsys.readouterr().err
    assert not work.exists()
    whole = store_in(tmp_path / "b")
    assert ask(whole, []).shards == said.shards
    asked.clear()
    assert ask(store, asked, TEACHER | {"name": "renamed"}) == said
    assert asked == []
    with pytest.raises(UserError, match=r"asked already, otherwise.*\n  top_k: was 3, is 2"):
        ask(store, asked, top_k=2)
    assert ask(store, asked, top_k=2, overwrite=True).windows.top_k == 2
    assert len(find_top_k(store).shards) == 3  # type: ignore[union-attr]
    assert not work.exists()


@pytest.mark.usefixtures("_small_shards")
def test_damage_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_in(tmp_path / "a")
    said = ask(store, [])
    verify(said)
    folder = Path(said.path)
    path = folder / "log_probs-00002.bin"
    good = path.read_bytes()
    path.write_bytes(np.full(60, 1, "<f2").tobytes())
    with pytest.raises(UserError, match=r"checksums differ.*\n  log_probs-00002\.bin$"):
        verify(said)
    with pytest.raises(UserError, match="damaged: holds what is no log-probability"):
        find_top_k(store).rows(np.array([8]), 1)  # type: ignore[union-attr]
    path.write_bytes(good)
    ids = folder / "ids-00002.bin"
    ids.write_bytes(np.full(60, 4000, "<u2").tobytes())
    with pytest.raises(UserError, match="damaged: holds an id above 72"):
        find_top_k(store).rows(np.array([8]), 1)  # type: ignore[union-attr]
    ids.unlink()
    with pytest.raises(UserError, match=r"ids-00002\.bin: no bytes instead of 120"):
        find_top_k(store)
    record = json.loads((folder / "top_k.json").read_text())
    windows = record["windows"]
    changes: dict
    for changes, message in (
        ({"format": 2}, "of format 2; this chopjax reads 1"),
        ({"shards": []}, "shards: not of the windows"),
        ({"shards": [3]}, "\n  3"),
        ({"windows": {}}, "top_k: is missing"),
        ({"windows": windows | {"rows": 10**18}}, "shards: not of the windows"),
        ({"windows": windows | {"top_k": 0}}, "windows: .*top_k=0"),
        ({"windows": windows | {"mask_documents": 1}}, "mask_documents: is 1"),
        ({"x": 1}, "'x': no such field"),
        ({"teacher": None}, "teacher: is None"),
    ):
        (folder / "top_k.json").write_text(json.dumps(record | changes))
        with pytest.raises(UserError, match=message):
            find_top_k(store)
    (folder / "top_k.json").write_text("[")
    with pytest.raises(UserError, match="not a JSON object"):
        find_top_k(store)
    with pytest.raises(UserError, match=r"holds what chopjax did not write.*top_k\.json"):
        ask(store, [], overwrite=True)
    other = store_in(tmp_path / "b")
    nan = dataclasses.replace(windows_of(other, 14, K, T, False, 99))
    bad = [(np.zeros((4, T, K), np.int32), np.full((4, T, K), np.nan, np.float16))]
    with pytest.raises(UserError, match="logits are not all numbers"):
        write_top_k(Path(other.path), other, nan, TEACHER, lambda: lambda rows: iter(bad))
    monkeypatch.setattr(top_k_writer, "free_bytes", lambda folder: 839)
    with pytest.raises(UserError, match="840 bytes will be written there, and 839 are free"):
        ask(other, [])
    assert not (tmp_path / "b.top_k.partial").exists()
