"""The model card: its header, and what it says of every kind of history."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from checkpoints import write_checkpoint, write_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from chopjax.checkpoint.card import card, is_ours, read_header, write_record
from chopjax.checkpoint.provenance import (
    QUANTIZATION,
    SCRATCH,
    TRAINING,
    WIDTH,
    add_entry,
    compose,
)
from chopjax.checkpoint.training_record import hub_datasets, public_name
from chopjax.cli import main

COMMIT = "0" * 40
ENTRY: dict[str, Any] = {
    "kind": "full",
    "steps": 400,
    "tokens": 1_638_400,
    "optimizer": {"name": "lion", "b1": 0.9, "b2": 0.95, "weight_decay": 1e-4, "clip_norm": 1.0},
    "learning_rate": {"peak": 3e-4, "warmup_steps": 50, "final_fraction": 0.1, "total_steps": 400},
    "batch_size": 16,
    "sequence_length": 256,
    "seed": 7,
    "data": [
        {
            "name": "c4",
            "fingerprint": "f" * 64,
            "share": 1.0,
            "sources": ["hf:allenai/c4@" + COMMIT, "my | corpus.jsonl"],
        }
    ],
    "held_out": {"window_loss": 2.5, "tokens": 1000, "convention": "in windows", "data": None},
}


def chopped(name: str = "owner/name", revision: str | None = COMMIT) -> dict[str, Any]:
    return compose(None, name, revision, 8, "input", {"remove": 4}, (0, 5, 6, 7))


def healed(record: dict[str, Any]) -> dict[str, Any]:
    return add_entry(TRAINING, record, "chopped", None, len(record["kept_layers"]), ENTRY)


def front(text: str) -> dict[str, Any]:
    begin, header, _ = text.split("---\n", 2)
    assert begin == ""
    return yaml.safe_load(header)


def parent_folder(folder: Path, readme: str | None = None, licence: str | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    if readme is not None:
        (folder / "README.md").write_text(readme)
    if licence is not None:
        (folder / "LICENSE").write_text(licence)
    return folder


def test_a_healed_model_of_the_hub(tmp_path: Path) -> None:
    parent_folder(tmp_path, "---\nlicense: llama2\nlanguage: [en, de]\ntags: [x]\n---\n# Parent\n")
    write_record(tmp_path, healed(chopped()))
    text = (tmp_path / "README.md").read_text()
    assert front(text) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "llama2",
        "language": ["en", "de"],
        "base_model": "owner/name",
        "datasets": ["allenai/c4"],
        "tags": ["chopjax", "layer-pruning", "continued-pretraining"],
    }
    for said in ("0,5-7", "1-4", "400 steps, 1,638,400 tokens, all weights", "lion, betas 0.9 and",
                 "peak 0.0003", "16 sequences of 256 tokens, seed 7", "ffffffffffffffff",
                 "2.5000 nats per token over 1,000 tokens", "my \\| corpus.jsonl", "(llama2)",
                 "https://huggingface.co/owner/name"):  # fmt: skip
        assert said in text, said
    assert (tmp_path / "PARENT_README.md").read_text().endswith("# Parent\n")


def test_a_local_parent_is_no_base_model_and_its_folder_is_not_told(tmp_path: Path) -> None:
    write_record(tmp_path, chopped("/home/somebody/secret/parent", None))
    text = (tmp_path / "README.md").read_text()
    assert "base_model" not in front(text)
    assert "license" not in front(text)
    assert "# parent, 4 of 8 layers\n" in text
    assert "somebody" not in text
    assert "continued pretraining" not in text


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("  Apache License\n  Version 2.0, January 2004\n", {"license": "apache-2.0"}),
        ("MIT License\n\nCopyright", {"license": "mit"}),
        (
            "LLAMA 2 COMMUNITY LICENSE",
            {"license": "other", "license_name": "see-file", "license_link": "LICENSE"},
        ),
    ],
)
def test_a_licence_file_counts_where_no_card_says_it(
    tmp_path: Path, licence: str, expected: dict[str, str]
) -> None:
    parent_folder(tmp_path, "no header", licence)
    assert read_header(tmp_path) == expected
    parent_folder(tmp_path, "---\nlicense: gemma\n---\n", licence)
    assert read_header(tmp_path) == {"license": "gemma"}


@pytest.mark.parametrize(
    "readme",
    [
        "---\nlicense: [\n---\n",
        "---\n- a\n- b\n---\n",
        "---\nlicense: {a: 1}\nlanguage: 5\n---\n",
        "---\nlicense: !!python/object/apply:os.system [true]\n---\n",
        "---\nlicense: " + "[" * 20_000 + "\n---\n",
        "---\nlicense: 2020-99-99\n---\n",
        "---\nlicense: mit",
        "\x00\x01",
        "",
    ],
)
def test_any_card_of_somebody_else_will_do(tmp_path: Path, readme: str) -> None:
    parent_folder(tmp_path, readme)
    found = read_header(tmp_path)
    assert all(isinstance(value, str) for value in found.values())
    write_record(tmp_path, chopped())
    assert front((tmp_path / "README.md").read_text())["base_model"] == "owner/name"


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_name_breaks_the_header_or_the_table(name: str, source: str) -> None:
    entry = ENTRY | {"data": [{"name": name, "fingerprint": "f", "sources": [source]}]}
    record = add_entry(TRAINING, chopped(name, COMMIT), name, None, 4, entry)
    text = card(record, {}, Path("nowhere"))
    assert front(text)["base_model"] == name
    table = text.split("| | |\n| --- | --- |\n")[1].split("\n\n")[0]
    for line in table.splitlines():
        assert line.startswith("| ")
        assert line.endswith(" |")


def test_the_card_is_written_anew_and_the_first_parents_stays(tmp_path: Path) -> None:
    parent_folder(tmp_path, "---\nlicense: mit\n---\nthe first\n")
    write_record(tmp_path, chopped())
    assert is_ours(tmp_path / "README.md")
    once = (tmp_path / "README.md").read_text()
    write_record(tmp_path, chopped())
    assert (tmp_path / "README.md").read_text() == once, "nothing changed"
    write_record(tmp_path, healed(chopped()))
    twice = (tmp_path / "README.md").read_text()
    assert is_ours(tmp_path / "README.md")
    (tmp_path / "README.md").write_text(twice + "my own words\n")
    assert not is_ours(tmp_path / "README.md")
    assert twice != once
    assert front(twice)["license"] == "mit"
    assert (tmp_path / "PARENT_README.md").read_text().endswith("the first\n")


@pytest.mark.parametrize("repair", [{}, {"repair": {"kind": "affine", "added": ["b"]}}])
@pytest.mark.parametrize("steps", [[], [WIDTH]])
def test_not_everything_that_runs_the_parent_runs_quantized_weights(
    steps: list[str], repair: dict[str, Any], tmp_path: Path
) -> None:
    record = compose(None, "m", None, 8, "input", repair, (0, 5))
    for step in steps:
        record = add_entry(step, record, "m", None, 2, {})
    plain = card(record, {}, tmp_path)
    assert "runs the parent" in plain
    record = add_entry(QUANTIZATION, record, "m", None, 2, {"weights": "int8"})
    text = card(record, {}, tmp_path)
    assert "runs the parent" not in text
    assert "transformers reads them where `compressed-tensors` is installed" in text
    assert ("biases were added" in text) == bool(repair)


def test_what_layers_were_measured_on(tmp_path: Path) -> None:
    analysis = {"model": "/home/me/m", "data": ["/home/me/a.txt", "hf:b/c"], "tokens": 65536}
    about = {"remove": 6, "analysis": analysis | {"settings": {"measures": ["similarity"]}}}
    record = compose(None, "m", None, 8, "similarity", about, (0, 5))
    expected = "| strategy | similarity (remove 6, analysis on 65,536 tokens of a.txt, hf:b/c) |"
    assert expected in card(record, {}, tmp_path)


def test_random_weights_have_no_parent(tmp_path: Path) -> None:
    parent_folder(tmp_path, "---\nlicense: mit\n---\nof the tokenizer\n")
    record = add_entry(TRAINING, None, SCRATCH, None, 8, ENTRY)
    write_record(tmp_path, record)
    text = (tmp_path / "README.md").read_text()
    assert "license" not in front(text)
    assert "base_model" not in front(text)
    assert "trained from random weights" in text
    assert not (tmp_path / "PARENT_README.md").exists()
    # The first model with a name is what later ones come from.
    later = compose(record, "mine", None, 8, "input", {"remove": 4}, (0, 5, 6, 7))
    assert later["parent"]["name"] == "mine"
    assert [entry["step"] for entry in later["history"]] == ["training", "chop"]


def test_of_places_on_this_machine_the_last_part_is_public() -> None:
    assert public_name("/home/me/corpus.jsonl") == "corpus.jsonl"
    assert public_name("gs://bucket/tokens") == "gs://bucket/tokens"
    assert public_name("tfds:c4/en:3.1.0:train") == "tfds:c4/en:3.1.0:train"
    part = f"hf://datasets/allenai/c4@{COMMIT}/en/c4-train.00000.json.gz (en, train)"
    assert public_name(part) == f"hf:allenai/c4@{COMMIT}"
    assert hub_datasets([ENTRY, {}, {"data": None}]) == ["allenai/c4"]


def test_an_import_comes_back_with_the_card_that_it_had(tmp_path: Path) -> None:
    model = write_tokenizer(write_checkpoint(tmp_path / "model"))
    (model / "README.md").write_bytes(b"---\nlicense: mit\n---\nas it is\r\n")

    def run(*arguments: object) -> None:
        assert main([str(argument) for argument in arguments]) == 0

    run("import", model, tmp_path / "imported")
    run("export", tmp_path / "imported", tmp_path / "back")
    names = [sorted(p.name for p in folder.iterdir()) for folder in (model, tmp_path / "back")]
    assert [".chopjax.json", *names[0]] == names[1]
    assert (tmp_path / "back" / "README.md").read_bytes() == (model / "README.md").read_bytes()
    # What an import leaves out is a change.
    run("import", model, tmp_path / "kept", "--keep", "0,3")
    run("export", tmp_path / "kept", tmp_path / "out")
    assert is_ours(tmp_path / "out" / "README.md")
    assert front((tmp_path / "out" / "README.md").read_text())["license"] == "mit"
    # A chopped checkpoint comes back as it was, whatever its card says now.
    (tmp_path / "out" / "README.md").write_text("edited")
    run("import", tmp_path / "out", tmp_path / "again")
    run("export", tmp_path / "again", tmp_path / "same")
    assert (tmp_path / "same" / "README.md").read_text() == "edited"
    record = json.loads((tmp_path / "same" / "chopjax.json").read_text())
    assert record["kept_layers"] == [0, 3]
