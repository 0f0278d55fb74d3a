from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from data.conftest import texts
from data.stores import stream

from chopjax.data import sources
from chopjax.data.chat import load_chat
from chopjax.data.messages import as_text
from chopjax.data.prepare import prepare
from chopjax.data.shards import text_hash
from chopjax.data.store import TokenStore, open_store, verify
from chopjax.data.tokenizer import Tokenizer
from chopjax.errors import UserError


def write_jsonl(path: Path, documents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path


def contents(folder: Path) -> dict[str, str]:
    """Every file of a folder, and its bytes' hash."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def documents(store: TokenStore) -> list[list[int]]:
    starts = [*store.starts(0, store.num_tokens).tolist(), store.num_tokens]
    tokens = stream(store).tolist()
    return [tokens[a:b] for a, b in itertools.pairwise(starts)]


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MIN_PIECE_BYTES", 4000)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """20 kB in several files, empty documents and repetitions among them."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", [*texts(150), "", "twice", "twice"])
    write_jsonl(folder / "b.jsonl", texts(20, seed=1))
    (folder / "c.txt").write_text("one text\n\nin two paragraphs")
    return folder


def corpus_texts() -> list[str]:
    return [*texts(150), "twice", "twice", *texts(20, seed=1), "one text\n\nin two paragraphs"]


def test_documents_come_back_in_order(corpus: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    store = prepare([corpus], tokenizer, tmp_path / "out", workers=2)[""]
    expected = corpus_texts()
    found = documents(store)
    assert all(ids[0] == tokenizer.bos_id for ids in found)
    assert [tokenizer.decode(ids[1:]) for ids in found] == expected
    assert [ids[1:] for ids in found] == tokenizer.encode_batch(expected)
    assert store.num_documents == len(expected)
    assert store.text_bytes == sum(len(text.encode()) for text in expected)
    assert store.num_tokens == sum(map(len, found))
    assert store.largest_id == max(map(max, found))
    assert store.tokenizer_fingerprint == tokenizer.fingerprint
    assert [Path(source["name"]).name for source in store.sources] == [
        "a.jsonl",
        "b.jsonl",
        "c.txt",
    ]
    for source in store.sources:
        data = Path(source["name"]).read_bytes()
        assert source["size"] == len(data)
        assert source["sha256"] == hashlib.sha256(data).hexdigest()
    assert len(store.shards) > 3
    verify(store)
    assert not list(tmp_path.glob("out.*"))


def test_the_number_of_workers_does_not_matter(
    corpus: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    for workers in (1, 3):
        prepare([corpus], tokenizer, tmp_path / str(workers), workers=workers, held_out=0.2)
    assert contents(tmp_path / "1") == contents(tmp_path / "3")


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [("auto", "none", [0, 7, 0, 8]), ("eos", "none", [1, 7, 1, 8]), ("none", "eos", [7, 1, 8, 1])],
)
def test_separators(
    tokenizer: Tokenizer, tmp_path: Path, before: str, after: str, expected: list[int]
) -> None:
    texts = [tokenizer.decode([7]), tokenizer.decode([8])]
    path = write_jsonl(tmp_path / "a.jsonl", texts)
    store = prepare([path], tokenizer, tmp_path / "out", before=before, after=after)[""]  # type: ignore[arg-type]
    assert stream(store).tolist() == expected
    assert store.dtype == "uint16"


def test_large_vocabularies_take_four_bytes(shared: Path, tmp_path: Path) -> None:
    """And a separator is bos if there is one, else eos."""
    import dataclasses

    from chopjax.data.tokenizer import load_tokenizer

    gpt2 = load_tokenizer(shared / "models" / "gpt2-tokenizer")
    wide = dataclasses.replace(gpt2, vocab_size=70_000, bos_id=None, eos_id=66_000)
    path = write_jsonl(tmp_path / "a.jsonl", ["Hello"])
    store = prepare([path], wide, tmp_path / "out")[""]
    assert store.dtype == "uint32"
    assert stream(store).tolist() == [66_000, *gpt2.encode_batch(["Hello"])[0]]
    bare = dataclasses.replace(gpt2, bos_id=None, eos_id=None)
    assert prepare([path], bare, tmp_path / "bare")[""].before is None
    with pytest.raises(UserError, match="has no eos token"):
        prepare([path], bare, tmp_path / "eos", after="eos")


def test_held_out_documents(corpus: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    whole = [(0, *ids) for ids in tokenizer.encode_batch(corpus_texts())]
    for share in (0.25, 30):
        stores = prepare([corpus], tokenizer, tmp_path / str(share), workers=1, held_out=share)
        train, held_out = ({tuple(d) for d in documents(stores[p])} for p in ("train", "held_out"))
        assert not train & held_out
        assert train | held_out == set(whole)
        assert stores["train"].num_documents + stores["held_out"].num_documents == len(whole)
        if share == 30:  # a text that comes twice counts once or twice
            assert stores["held_out"].num_documents in (29, 30)
        else:
            assert 20 < stores["held_out"].num_documents < 70
    hashes = sorted({text_hash(text) for text in corpus_texts()})
    assert abs(np.mean(np.array(hashes) / 2**64) - 0.5) < 0.1
    for bad, message in (
        ("x", "a fraction between 0 and 1"),
        (1.5, "a fraction between 0 and 1"),
        (0, "a fraction between 0 and 1"),
        (174, "only 173 documents in all"),
        (173, "only 173 documents in all"),
        (1e-9, "no document for held_out"),
    ):
        with pytest.raises(UserError, match=message):
            prepare([corpus], tokenizer, tmp_path / "bad", workers=1, held_out=bad)
    assert not list(tmp_path.glob("bad*"))


def test_same_settings_are_done_and_others_refused(
    corpus: Path, tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    prepare([corpus], tokenizer, out, workers=1)
    before = contents(out)
    stamp = (out / "store.json").stat().st_mtime_ns
    os.utime(corpus / "a.jsonl")  # touched, not changed
    prepare([corpus], tokenizer, out, workers=2)
    assert "prepared already" in capsys.readouterr().err
    assert (out / "store.json").stat().st_mtime_ns == stamp
    with pytest.raises(UserError, match=r"--overwrite:\n  after: was \[\], is \[1\]$"):
        prepare([corpus], tokenizer, out, after="eos")
    with pytest.raises(
        UserError, match=r"--overwrite:\n.*b\.jsonl: is missing\n.*c\.txt: is missing$"
    ):
        prepare([corpus / "a.jsonl"], tokenizer, out)
    names = [corpus / name for name in ("c.txt", "b.jsonl", "a.jsonl")]
    with pytest.raises(UserError, match="the inputs are in another order"):
        prepare(names, tokenizer, out)
    (corpus / "c.txt").write_text("one text\n\nin 2_2 paragraphs")  # as long as before
    with pytest.raises(UserError, match=r"--overwrite:\n  .*c\.txt: has changed since$"):
        prepare([corpus], tokenizer, out)
    assert contents(out) == before
    prepare([corpus], tokenizer, out, overwrite=True)
    assert contents(out) != before
    assert not list(tmp_path.glob("out.*"))


def test_what_is_not_ours_is_left_alone(corpus: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a token store; give another --output"):
        prepare([corpus], tokenizer, corpus, overwrite=True)
    assert (corpus / "a.jsonl").exists()
    (tmp_path / "empty").mkdir()
    prepare([corpus / "c.txt"], tokenizer, tmp_path / "empty")
    with pytest.raises(UserError, match="writes to a local folder"):
        prepare([corpus], tokenizer, "gs://bucket/store")
    with pytest.raises(UserError, match=r"c\.txt/out"):
        prepare([corpus / "b.jsonl"], tokenizer, corpus / "c.txt" / "out")


def test_conversations_carry_their_weights(
    tokenizer: Tokenizer, tokenizer_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template = tmp_path / "template.jinja"
    template.write_text(
        "{% for m in messages %}{{ '<s>' + m.role + ':' + m.content + '</s>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<s>assistant:' }}{% endif %}"
    )
    chat = load_chat(tokenizer_folder, tokenizer, file=template)
    words = texts(200)
    talks = [
        [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        for asked, answered in zip(words[::2], words[1::2], strict=True)
    ]
    silent = [talks[0][:1], []]
    corpus = tmp_path / "in"
    corpus.mkdir()
    path = corpus / "a.jsonl"
    path.write_text("".join(json.dumps({"messages": m}) + "\n" for m in [*talks, *silent]))
    (corpus / "README.md").write_text("no conversation")
    out = tmp_path / "out"
    stores = prepare([corpus], tokenizer, out, chat=chat, workers=1, held_out=0.2)
    left_out = re.findall(r"left out: (\d)", capsys.readouterr().err)
    assert sum(map(int, left_out)) == 2
    by_document = {
        tuple(part.ids): part for talk in talks for part in chat.encode_batch([as_text(talk)])[0]
    }
    for store in stores.values():
        assert len(store.shards) > 3
        expected = [by_document.pop(tuple(ids)) for ids in documents(store)]
        carries = [carried for part in expected for carried in part.carries or []]
        assert store.weights(np.array([0]), store.num_tokens)[0].tolist() == carries
        assert store.weighted_tokens == sum(carries) < store.num_tokens
        assert store.text_bytes == sum(len(part.text.encode()) for part in expected)
        verify(store)
    assert not by_document
    assert prepare([corpus], tokenizer, out, chat=chat, held_out=0.2) == stores
    with pytest.raises(UserError, match=r"chat: was .*, is None"):
        prepare([path], tokenizer, out, field="messages", held_out=0.2)
    with pytest.raises(UserError, match=r"README\.md: not a name that .* \(\.jsonl"):
        prepare([corpus / "README.md"], tokenizer, out, chat=chat)
    path.write_text(json.dumps({"messages": silent[0]}))
    with pytest.raises(UserError, match="the assistant says nothing in the input"):
        prepare([path], tokenizer, tmp_path / "silent", chat=chat)
    path.write_text(json.dumps({"messages": [{"role": "gpt"}]}))
    with pytest.raises(UserError, match=r"a\.jsonl:1: field 'messages': message 1 has the role"):
        prepare([path], tokenizer, tmp_path / "role", chat=chat)


def test_a_mistake_in_the_input_keeps_what_is_done(
    corpus: Path, tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = (corpus / "b.jsonl").read_bytes()
    (corpus / "b.jsonl").write_bytes(good + b"{broken\n")
    with pytest.raises(UserError, match=r"b\.jsonl:21: not a line of JSON"):
        prepare([corpus], tokenizer, tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()
    assert "what is finished is kept in" in capsys.readouterr().err
    (corpus / "b.jsonl").write_bytes(good)
    with pytest.raises(UserError, match=r"unfinished work with other settings.*\n.*b\.jsonl: has"):
        prepare([corpus], tokenizer, tmp_path / "out")
    prepare([corpus], tokenizer, tmp_path / "out", overwrite=True)
    prepare([corpus], tokenizer, tmp_path / "plain")
    assert contents(tmp_path / "out") == contents(tmp_path / "plain")


def test_no_text_at_all(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [""])
    for _ in range(2):
        with pytest.raises(UserError, match="there is no text in the input"):
            prepare([path], tokenizer, tmp_path / "out")
        assert not list(tmp_path.glob("out*"))
        path.write_bytes(b"")


def test_full_disks_are_named(
    corpus: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"File too large|No space left"):
        _limited_prepare(corpus, tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    prepare([corpus], tokenizer, tmp_path / "out")


def _limited_prepare(corpus: Path, tokenizer: Tokenizer, out: Path) -> None:
    """With files of at most 1 kB, which workers inherit."""
    import resource

    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1]))
    try:
        prepare([corpus], tokenizer, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)


# ------------------------------------------------------------------- Real processes, real kills

PROGRAM = """
import pickle
import sys
from chopjax.data import sources
sources.MIN_PIECE_BYTES = 100_000
from chopjax.data.prepare import prepare
if __name__ == "__main__":
    tokenizer = pickle.load(open(sys.argv[2], "rb"))
    prepare([sys.argv[1]], tokenizer, sys.argv[3], workers=2, held_out=0.02)
"""


class Run:
    """`prepare` in a process of its own."""

    def __init__(self, folder: Path, out: str):
        command = [sys.executable, *(str(folder / n) for n in ("program.py", "big", "pickle", out))]
        self.records = folder / f"{out}.partial" / "records"
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    def wait_for_records(self, count: int) -> None:
        deadline = time.monotonic() + 300
        while self.done() < count and self.process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def done(self) -> int:
        return len(list(self.records.glob("0*.json")))

    def workers(self) -> list[int]:
        """Children of the process that are Python."""
        with contextlib.suppress(FileNotFoundError):
            path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
            return [int(pid) for pid in path.read_text().split()]
        return []


def is_alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    return False


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> tuple[Path, dict]:
    """2 MB of text, and what undisturbed work makes of it."""
    folder = tmp_path_factory.mktemp("kills")
    (folder / "program.py").write_text(PROGRAM)
    (folder / "pickle").write_bytes(pickle.dumps(tokenizer))
    (folder / "big").mkdir()
    for n in range(4):
        write_jsonl(folder / "big" / f"{n}.jsonl", texts(4000, seed=n))
    run = Run(folder, "undisturbed")
    assert run.process.wait(300) == 0
    return folder, contents(folder / "undisturbed")


def test_killed_at_any_time_it_ends_with_the_same_bytes(big: tuple[Path, dict]) -> None:
    folder, expected = big
    seen = []
    for records in (1, 5, 12):
        run = Run(folder, "killed")
        run.wait_for_records(records)
        workers = run.workers()
        run.process.send_signal(signal.SIGKILL)
        run.process.wait(10)
        seen.append(run.done())
        assert not (folder / "killed").exists()
        deadline = time.monotonic() + 10
        while any(is_alive(pid) for pid in workers):  # they notice, and end
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert seen[0] <= seen[1] <= seen[2]
    last = Run(folder, "killed")
    _, err = last.process.communicate(timeout=300)
    assert last.process.returncode == 0, err
    assert f"{seen[2]} of " in err
    assert contents(folder / "killed") == expected
    assert not list(folder.glob("killed.*"))


def test_ctrl_c_ends_soon_and_quietly(big: tuple[Path, dict]) -> None:
    folder, expected = big
    run = Run(folder, "interrupted")
    run.wait_for_records(3)
    for pid in (run.process.pid, *run.workers()):  # a terminal sends it to all
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGINT)
    _, err = run.process.communicate(timeout=20)
    assert "what is finished is kept in" in err
    assert err.count("Traceback") == 1  # of this small program; `chopjax prepare` has none
    assert not (folder / "interrupted").exists()
    again = Run(folder, "interrupted")
    assert again.process.wait(300) == 0
    assert contents(folder / "interrupted") == expected


def test_a_killed_worker_is_named(big: tuple[Path, dict]) -> None:
    folder, _ = big
    run = Run(folder, "worker")
    run.wait_for_records(2)
    os.kill(run.workers()[-1], signal.SIGKILL)
    _, err = run.process.communicate(timeout=300)
    assert "a worker process died" in err
    assert run.done() >= 2


def test_two_at_once_are_refused(big: tuple[Path, dict]) -> None:
    folder, expected = big
    first = Run(folder, "both")
    first.wait_for_records(1)
    second = Run(folder, "both")
    _, err = second.process.communicate(timeout=300)
    assert "another process is preparing" in err or "prepared already" in err
    assert first.process.wait(300) == 0
    assert contents(folder / "both") == expected


def test_a_kill_between_the_renames_is_made_good(
    corpus: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    prepare([corpus / "b.jsonl"], tokenizer, out)
    prepare([corpus], tokenizer, tmp_path / "plain", held_out=20)
    real = Path.rename
    for name in ("out", "store"):  # before the old one is moved away, and after

        def rename(path: Path, target: Path, name: str = name) -> Path:
            if path.name == name:
                raise KeyboardInterrupt
            return real(path, target)

        monkeypatch.setattr(Path, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            prepare([corpus], tokenizer, out, held_out=20, overwrite=True)
        monkeypatch.setattr(Path, "rename", real)
        assert out.exists() == (name == "out")
    prepare([corpus], tokenizer, out, held_out=20)
    assert contents(out) == contents(tmp_path / "plain")
    assert not list(tmp_path.glob("out.*"))
    assert open_store(out / "held_out").num_documents in (19, 20)
