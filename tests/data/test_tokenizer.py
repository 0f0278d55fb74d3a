from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from chopjax.data.tokenizer import Tokenizer, load_tokenizer
from chopjax.errors import UserError

REAL = ["llama2-tokenizer", "gpt2-tokenizer", "mix-llama-12l", "tinystories-656k"]


@pytest.mark.parametrize("name", REAL)
def test_ids_are_those_of_transformers(shared: Path, name: str) -> None:
    ours = load_tokenizer(shared / "models" / name)
    theirs = transformers.AutoTokenizer.from_pretrained(shared / "models" / name)
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert ours.vocab_size == len(theirs)
    lines = (shared / "corpora" / "mixed.train.jsonl").open().readlines()[:200]
    odd = [
        "",
        " ",
        "  a  b",
        "\n\n x\t",
        "<s> hi </s> <unk>,",
        "a<|endoftext|>b",
        "café 日本 🎉 \x00",
    ]
    texts = [json.loads(line)["text"] for line in lines] + odd
    expected = [theirs.encode(text, add_special_tokens=False) for text in texts]
    assert ours.encode_batch(texts) == expected
    # The same after the journey to another process.
    assert pickle.loads(pickle.dumps(ours)).encode_batch(texts) == expected


@given(st.lists(st.text(), max_size=5))
@settings(max_examples=50, deadline=None)
def test_byte_level_ids_decode_to_the_text(tokenizer: Tokenizer, texts: list[str]) -> None:
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("name", REAL)
def test_saving_again_keeps_the_fingerprint(shared: Path, tmp_path: Path, name: str) -> None:
    folder = shared / "models" / name
    built = transformers.AutoTokenizer.from_pretrained(folder)
    built("some text", truncation=True, max_length=4)  # is saved along
    built.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).fingerprint == load_tokenizer(folder).fingerprint


def test_the_fingerprint_sees_what_decides_ids_and_nothing_else(
    tokenizer_folder: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    def changed(**parts: object) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(tokenizer_folder, folder)
        said = json.loads((folder / "tokenizer.json").read_text())
        for name, value in parts.items():
            target, _, inner = name.partition("__")
            if inner:
                said[target][inner] = value
            else:
                said[target] = value
        (folder / "tokenizer.json").write_text(json.dumps(said))
        return load_tokenizer(folder).fingerprint

    said = json.loads((tokenizer_folder / "tokenizer.json").read_text())
    truncation = {"max_length": 9, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    merges = said["model"]["merges"]
    extra = said["added_tokens"][0] | {"id": 400, "content": "<extra>"}
    same = [
        changed(model__merges=[" ".join(pair) for pair in merges]),  # the older spelling
        changed(model__continuing_subword_prefix=""),
        changed(truncation=truncation),
        changed(decoder=None),
    ]
    assert set(same) == {tokenizer.fingerprint}
    other = [
        changed(model__merges=[merges[1], merges[0], *merges[2:]]),
        changed(normalizer={"type": "Lowercase"}),
        changed(pre_tokenizer=said["pre_tokenizer"] | {"add_prefix_space": True}),
        changed(model__ignore_merges=True),
        changed(added_tokens=[*said["added_tokens"], extra]),
    ]
    assert len({*other, tokenizer.fingerprint}) == 6


def test_ids_come_from_config_where_the_tokenizer_names_none(
    tokenizer_folder: Path, tmp_path: Path
) -> None:
    shutil.copy(tokenizer_folder / "tokenizer.json", tmp_path)
    config = {"tokenizer_class": "TokenizersBackend"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text('{"model_type": "llama", "eos_token_id": [7, 9]}')
    found = load_tokenizer(tmp_path)
    assert (found.bos_id, found.eos_id) == (None, 7)


def test_vocab_and_merges_without_tokenizer_json(shared: Path, tmp_path: Path) -> None:
    """facebook/opt-125m has no tokenizer.json."""
    said = json.loads((shared / "models" / "gpt2-tokenizer" / "tokenizer.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps(said["model"]["vocab"]))
    merges = ["#version: 0.2", *(" ".join(pair) for pair in said["model"]["merges"])]
    (tmp_path / "merges.txt").write_text("\n".join(merges))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    found = load_tokenizer(tmp_path)
    whole = load_tokenizer(shared / "models" / "gpt2-tokenizer")
    assert found.encode_batch(["Hello, café"]) == whole.encode_batch(["Hello, café"])
    assert found.fingerprint == whole.fingerprint


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no tokenizer there .*tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": 3')
    with pytest.raises(UserError, match="no tokenizer that transformers can load"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="--revision is for hub ids"):
        load_tokenizer(tmp_path, revision="main")
    with pytest.raises(UserError, match=r"HF_HUB_OFFLINE|cannot be reached"):
        load_tokenizer("nobody/nothing")
