from __future__ import annotations

import gzip
import itertools
import json
import sys
from pathlib import Path

import fsspec
import pytest
from data.stores import write_store

from chopjax.data import messages
from chopjax.data.sources import MAX_PIECES, Source, find_sources, pieces
from chopjax.data.text_files import TextFile
from chopjax.errors import UserError


def write_jsonl(path: Path, texts: list[str], field: str = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps({field: text}) + "\n" for text in texts).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def read(sources: list[Source]) -> list[str]:
    done: list[int] = []
    return [t for piece in pieces(sources) for part in piece for t in part.texts(done.append)]


def test_files_folders_and_patterns(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "b.jsonl", ["b"])
    write_jsonl(tmp_path / "deep" / "a.jsonl.gz", ["a"])
    (tmp_path / "c.txt").write_text("c")
    (tmp_path / "README").write_text("not data")
    assert read(find_sources([str(tmp_path)])) == ["b", "c", "a"]
    assert read(find_sources([f"{tmp_path}/*.jsonl"])) == ["b"]
    assert read(find_sources([f"{tmp_path}/**/*.jsonl*"])) == ["b", "a"]
    order = [str(tmp_path / "c.txt"), str(tmp_path / "b.jsonl")]
    assert read(find_sources(order)) == ["c", "b"]


def test_odd_names(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "part [1] é*.jsonl", ["odd"])
    assert read(find_sources([str(tmp_path / "part [1] é*.jsonl")])) == ["odd"]


def test_a_url_is_read_like_a_folder() -> None:
    system = fsspec.filesystem("memory")
    system.pipe("/bucket/data/a.jsonl", b'{"text": "far away"}\n{"text": "second"}\n')
    assert read(find_sources(["memory://bucket/data"])) == ["far away", "second"]
    (source,) = find_sources(["memory://bucket/data/*.jsonl"])
    assert isinstance(source, TextFile)
    assert list(source.texts(5, 41, lambda _: None)) == ["second"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.jsonl", r"nowhere\.jsonl: no such file or folder"),
        ("*.txt", r"no such file or folder"),
        ("empty", "no file in it ends in"),
        ("table.csv", r"table\.csv: not a name that says how to read it \(\.jsonl"),
        ("foo://x", "cannot be opened"),
        ("hf:./nowhere", "no such folder"),
        ("hf:a/b/c/d", r"hf:OWNER/NAME"),
        ("tfds:no_such_dataset", r"tfds build no_such_dataset --file_format=array_record"),
    ],
)
def test_mistakes_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    (tmp_path / "empty").mkdir()
    (tmp_path / "table.csv").write_text("a,b")
    with pytest.raises(UserError, match=message):
        find_sources([name])


def test_the_same_file_twice(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["a"])
    with pytest.raises(UserError, match=r"twice:\n.*a\.jsonl"):
        find_sources([str(tmp_path), str(tmp_path / "a.jsonl")])
    with pytest.raises(UserError, match="no input"):
        find_sources([])


def test_pieces_are_of_about_the_same_size_and_few() -> None:
    def file(name: str, size: int) -> TextFile:
        return TextFile(name, size, "text", "file")

    many = [file(f"{n}.txt", 1000) for n in range(100_000)]
    assert sum(len(piece) for piece in pieces(many)) == 100_000
    assert len(pieces(many)) <= MAX_PIECES
    big = [file("a.jsonl", 10**12), file("b.jsonl.gz", 10**10), file("c.jsonl", 5)]
    found = pieces(big)
    assert MAX_PIECES / 2 < len(found) <= MAX_PIECES + len(big)
    parts = [(p.start, p.stop) for piece in found for p in piece if p.source == big[0]]
    assert parts[0][0] == 0
    assert parts[-1][1] == 10**12
    assert all(left[1] == right[0] for left, right in itertools.pairwise(parts))
    sizes = [sum(part.size for part in piece) for piece in found]
    assert sorted(sizes)[-2] < 2 * sorted(sizes)[len(sizes) // 2]


def test_hugging_face_folder_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    write_jsonl(tmp_path / "data" / "train-0.jsonl", ["a", "b"])
    write_jsonl(tmp_path / "data" / "train-1.jsonl", ["c"])
    write_jsonl(tmp_path / "data" / "validation.jsonl", ["v"])
    (source,) = find_sources([f"hf:{tmp_path}/data"])
    assert source.size == sum(path.stat().st_size for path in (tmp_path / "data").glob("train*"))
    assert read([source]) == ["a", "b", "c"]
    assert [len(source.cuts(1)), list(source.texts(1, 2, lambda _: None))] == [2, ["c"]]
    assert read(find_sources([f"hf:{tmp_path}/data:validation"])) == ["v"]
    with pytest.raises(UserError, match=r"Bad split: test"):
        find_sources([f"hf:{tmp_path}/data:test"])
    with pytest.raises(UserError, match=r"no text in field 'body'; --field takes: text"):
        read(find_sources([f"hf:{tmp_path}/data"], field="body"))


TALK = [{"role": "user", "content": "é?"}, {"role": "assistant", "content": "b"}]
TALK_TEXT = '[{"content":"é?","role":"user"},{"content":"b","role":"assistant"}]'


def test_messages_of_files_and_of_datasets(tmp_path: Path) -> None:
    """Arrow fills keys that only some messages have up with null."""
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "data").mkdir()
    call = {"role": "tool", "content": "c", "name": "f"}
    table = pyarrow.Table.from_pylist([{"chat": TALK}, {"chat": [*TALK, call]}])
    pyarrow.parquet.write_table(table, tmp_path / "data" / "train.parquet")
    first, second = read(find_sources([f"hf:{tmp_path}/data"], "chat", read=messages.of_field))
    assert first == TALK_TEXT
    assert json.loads(second) == [*TALK, call]
    lines = tmp_path / "a.jsonl"
    lines.write_text(json.dumps({"chat": TALK}) + "\n\n" + json.dumps({"x": 1}))
    found = find_sources([str(lines)], "chat", read=messages.of_field)[0].texts(
        0, 10**6, lambda _: None
    )
    assert next(found) == TALK_TEXT
    with pytest.raises(UserError, match=r"a\.jsonl:3: no field 'chat'; name another .*here: x"):
        next(found)
    with pytest.raises(UserError, match=r"hf:.*: no field 'messages'; name another .*here: chat"):
        read(find_sources([f"hf:{tmp_path}/data"], "messages", read=messages.of_field))


def test_hugging_face_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "data").mkdir()
    table = pyarrow.table({"text": ["p", "q"], "n": [1, 2]})
    pyarrow.parquet.write_table(table, tmp_path / "data" / "train.parquet")
    assert read(find_sources([f"hf:{tmp_path}/data"])) == ["p", "q"]


TOY = """
import tensorflow_datasets as tfds

class Builder(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.2.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="en")]

    def _info(self):
        text = tfds.features.Text()
        chat = tfds.features.Sequence({"role": text, "content": text})
        features = tfds.features.FeaturesDict({"text": text, "url": text, "chat": chat})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, _):
        return {"train": self._generate_examples(50), "validation": self._generate_examples(5)}

    def _generate_examples(self, count):
        for n in range(count):
            chat = [{"role": "user", "content": "é?"}, {"role": "assistant", "content": "b"}]
            yield n, {"text": f"document {n} é", "url": "u", "chat": chat}
"""


def test_tfds_by_random_access_without_tensorflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real dataset, written by TFDS in array_record form."""
    package = tmp_path / "code" / "toy"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "toy_dataset_builder.py").write_text(TOY)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    from toy.toy_dataset_builder import Builder

    folder = tmp_path / "tfds"
    Builder(data_dir=folder, config="en", file_format="array_record").download_and_prepare()
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    (source,) = find_sources(["tfds:toy/en"])
    assert source.name == "tfds:toy/en:1.2.0:train"
    whole = read([source])
    assert sorted(whole) == sorted(f"document {n} é" for n in range(50))
    assert [t for a, b, _ in source.cuts(100) for t in source.texts(a, b, lambda _: None)] == whole
    assert len(source.cuts(100)) > 5
    assert len(read(find_sources(["tfds:toy/en:validation"]))) == 5
    assert read(find_sources(["tfds:toy/en:1.2.0:train[:10%]"])) == whole[:5]
    with pytest.raises(UserError, match="Unknown split 'test'"):
        find_sources(["tfds:toy/en:test"])
    with pytest.raises(UserError, match=r"no text in field 'body'; --field takes: text, url"):
        read(find_sources(["tfds:toy/en"], field="body"))
    assert (
        read(find_sources(["tfds:toy/en:validation"], "chat", read=messages.of_field))
        == [TALK_TEXT] * 5
    )
    with pytest.raises(UserError, match=r"train: example 0: field 'url': a list of"):
        read(find_sources(["tfds:toy/en"], "url", read=messages.of_field))
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_compressed_file_of_no_bytes(tmp_path: Path, ending: str) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["a"])
    (tmp_path / f"b.jsonl{ending}").touch()
    with pytest.raises(UserError, match=rf"b\.jsonl{ending}: 0 bytes"):
        find_sources([str(tmp_path)])


def test_what_is_no_text(tmp_path: Path) -> None:
    write_store(tmp_path / "store", [[[1, 2]]])
    write_store(tmp_path / "stores" / "held_out", [[[1, 2]]])
    for folder, files in {
        "model": ("config.json", "tokenizer.json"),
        "run": ("chopjax_folder.json",),
        "text": ("config.json", "a.jsonl"),
    }.items():
        for name in files:
            write_jsonl(tmp_path / folder / name, ["a"])
    for folder, message in {
        "store": "a token store",
        "stores": "a token store",
        "model": "a model, and text is needed",
        "run": "a folder of chopjax's own",
    }.items():
        with pytest.raises(UserError, match=message):
            find_sources([str(tmp_path / folder)])
    assert len(find_sources([str(tmp_path / "text")])) == 2


def test_names_with_prefixes_and_colons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "hf:a.jsonl", ["a"])
    write_jsonl(tmp_path / "b::c.jsonl", ["b"])
    with pytest.raises(UserError, match=r"write \./hf:a\.jsonl"):
        find_sources(["hf:a.jsonl"])
    assert read(find_sources(["./hf:a.jsonl", "b::c.jsonl"])) == ["a", "b"]
    (tmp_path / "d").mkdir()
    (tmp_path / "d:e").mkdir()
    with pytest.raises(UserError, match=r"folders both; write hf:\./d:e:train"):
        find_sources(["hf:./d:e"])
