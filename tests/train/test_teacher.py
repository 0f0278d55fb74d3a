"""Whole runs with a teacher: which model and which layers teach, what is saved, what is refused."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Any

import checkpoints as models
import numpy as np
import pytest
from train.runs import STEPS, VOCAB, bits, lines, prepare, recipe, signal_after

from chopjax.checkpoint.export import export_model
from chopjax.checkpoint.open import open_checkpoint
from chopjax.chop.stream import chop_checkpoint
from chopjax.errors import UserError
from chopjax.train import loop
from chopjax.train.check import check
from chopjax.train.config_file import override
from chopjax.train.loop import train
from chopjax.train.offline_teacher import Question, ask_teacher
from chopjax.train.same_run import differences
from chopjax.train.settings import TeacherSettings

TERMS = ("hidden=0.5", "attention=0.5", "embedding=0.5", "mimic=0.5", "logits=0.5")
TAUGHT = ("teacher.model=parent", *(f"teacher.{term}" for term in TERMS))
CHOP = ("chop.keep=0,3", "chop.after_steps=4")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What runs.prepare makes, a chop of the model, and a wider and deeper teacher."""
    folder = prepare(tmp_path_factory.mktemp("data"))
    model = open_checkpoint(str(folder / "model"))
    chop_checkpoint(model, (0, 2, 3), folder / "chopped", "keep", {"keep": "0,2-3"})
    models.write_checkpoint(
        folder / "wide", seed=3, hidden_size=24, intermediate_size=24, head_dim=8,
        num_hidden_layers=5,
    )  # fmt: skip
    models.write_tokenizer(folder / "wide")
    return folder


@pytest.fixture(scope="module")
def taught(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run with all terms, that chops after step 4."""
    workdir = tmp_path_factory.mktemp("taught")
    train(recipe(data, *TAUGHT, *CHOP, "evaluation.every=4"), workdir)
    return workdir


def test_the_terms_of_a_run(data: Path, taught: Path, tmp_path: Path) -> None:
    """Before the chop student and teacher have the same layers, after it the kept ones; held-out
    loss is the next token's."""
    for name in ("hidden", "attention", "embedding", "kl"):
        term = lines(taught, name)
        assert list(term) == list(range(1, STEPS + 1))
        # Squares of differences; but the divergence is of differences of logarithms up to log V,
        # which float32 rounds: processors that fuse one pass otherwise than the other show it.
        rounding = np.finfo(np.float32).eps * np.log(VOCAB) if name == "kl" else 1e-9
        assert term[1] < rounding, "they are the same model then"
        assert term[5] > term[2] > 0
    assert list(lines(taught, "mimic")) == list(range(5, STEPS + 1)), "there is a gap then"
    train(recipe(data, "total_steps=2", "evaluation.every=1"), tmp_path)
    assert lines(tmp_path, "eval_loss")[0] == lines(taught, "eval_loss")[0]
    assert lines(tmp_path, "loss")[1] == lines(taught, "loss")[1]
    arrays = bits(taught)
    assert not any("teacher" in name or "projections" in name for name in arrays)


@pytest.mark.parametrize("step", [pytest.param(2, marks=pytest.mark.thorough), 7])
def test_resuming_gives_the_same_bits(
    data: Path, taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    config = recipe(data, *TAUGHT, *CHOP, "evaluation.every=4")
    with monkeypatch.context() as patch:
        signal_after(patch, step, signal.SIGTERM)
        with pytest.raises(SystemExit):
            train(config, tmp_path)
    train(config, tmp_path)
    assert bits(tmp_path) == bits(taught)
    assert lines(tmp_path, "kl") == lines(taught, "kl")


def test_the_record_names_the_teacher(taught: Path, tmp_path: Path) -> None:
    record = json.loads((taught / f"checkpoints/{STEPS}/run.json").read_text())["teacher"]
    assert (record["before"], record["after"]) == ([0, 1, 2, 3], [0, 3])
    assert record["fingerprint"]["sample"]
    export_model(str(taught), tmp_path / "healed")
    entry = json.loads((tmp_path / "healed/chopjax.json").read_text())["history"][1]["teacher"]
    assert (entry["name"], entry["layers"]) == ("model", [0, 3])
    assert (entry["logits"], entry["mimic"]) == (0.5, 0.5)
    card = (tmp_path / "healed/README.md").read_text()
    assert "| model, layers 0,3: divergence 0.5 at temperature 1.0, hidden 0.5, attention" in card


def test_what_was_stored_teaches_as_its_model_does(data: Path, tmp_path: Path) -> None:
    """All tokens but one are stored: what is left out is no mystery. Up to float16."""
    runs = {}
    for folder, flags in {"whole": (f"teacher.model={data / 'model'}",), "stored": ()}.items():
        store = shutil.copytree(data / "train", tmp_path / f"{folder}-tokens")
        if not flags:
            asked = ask_teacher(store, str(data / "model"), Question(16, VOCAB - 1))
            flags = (f"teacher.top_k={VOCAB - 1}",)
        flags = (*flags, f"data.train={store}", f"model={data / 'chopped'}", "data.evaluation=")
        runs[folder] = recipe(data, *flags, "teacher.logits=0.5", "total_steps=3")
        train(runs[folder], tmp_path / folder)
    for name in ("loss", "kl", "grad_norm"):
        whole, stored = (lines(tmp_path / folder, name) for folder in runs)
        assert stored == pytest.approx(whole, rel=2e-3)
    check(runs["stored"], str(tmp_path / "new"), "here")
    record = json.loads((tmp_path / "stored/checkpoints/3/run.json").read_text())
    assert record["fingerprints"]["top_k"] == [asked.fingerprint]
    export_model(str(tmp_path / "stored"), tmp_path / "healed")
    card = (tmp_path / "healed/README.md").read_text()
    assert "its likeliest next tokens by model (fingerprint" in card
    assert str(tmp_path) not in (tmp_path / "healed/chopjax.json").read_text()
    override(runs["stored"], "data.sequence_length=8")
    with pytest.raises(UserError, match="sequence_length: 16 there, 8 in training"):
        train(runs["stored"], tmp_path / "other")
    with pytest.raises(UserError, match="sequence_length: 16 there, 8 in training"):
        check(runs["stored"], str(tmp_path / "other"), "here")


def test_the_parent_of_what_was_chopped_before(data: Path, tmp_path: Path) -> None:
    """chopjax.json says which layers teach; a chop of the chop, when its own parent teaches."""
    model = f"model={data / 'chopped'}"
    short = (model, "total_steps=2", "data.evaluation=", "teacher.hidden=1.0")
    train(recipe(data, *short, "teacher.model=parent"), tmp_path / "once")
    named = (f"teacher.model={data / 'model'}", "chop.keep=0,2")
    train(recipe(data, *short, *named), tmp_path / "named")
    train(recipe(data, *short, "teacher.model=parent", "chop.keep=0,2"), tmp_path / "twice")
    found = {}
    for run in ("once", "named", "twice"):
        record = json.loads((tmp_path / run / "checkpoints/2/run.json").read_text())
        found[run] = (Path(record["teacher"]["name"]).name, record["teacher"]["after"])
    assert found == {
        "once": ("model", [0, 2, 3]),
        "named": ("model", [0, 3]),
        "twice": ("chopped", [0, 2]),
    }


def test_maps_between_widths_are_learned_and_not_exported(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("hidden=1.0", "attention=1.0", "embedding=1.0", "map=0,2-4")
    settings = (f"teacher.model={data / 'wide'}", *(f"teacher.{each}" for each in asked))
    config = recipe(data, *settings, "total_steps=4", "checkpoints.every=2", "data.evaluation=")
    train(config, tmp_path / "run")
    with monkeypatch.context() as patch:
        signal_after(patch, 2, signal.SIGTERM)
        with pytest.raises(SystemExit):
            train(config, tmp_path / "again")
    train(config, tmp_path / "again")
    arrays = bits(tmp_path / "run")
    assert bits(tmp_path / "again") == arrays
    learned = [name for name in arrays if name.startswith("['params']['projections']")]
    assert len(learned) == 3
    before = bits(tmp_path / "run", 2)
    assert all(arrays[name] != before[name] for name in learned)
    export_model(str(tmp_path / "run"), tmp_path / "healed")
    exported, parent = (open_checkpoint(str(f)) for f in (tmp_path / "healed", data / "model"))
    assert exported.tensors.keys() == parent.tensors.keys()


LORA = ("adapter.rank=2", "teacher.model=parent", "teacher.logits=0.5", "teacher.hidden=0.5")


def test_adapters_on_layers_of_the_teacher(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held once or each for itself: the same numbers, after a kill and through a chop, too."""
    config = recipe(data, *LORA, *CHOP, "data.evaluation=")
    train(config, tmp_path / "once")
    with monkeypatch.context() as patch:
        signal_after(patch, 7, signal.SIGTERM)
        with pytest.raises(SystemExit):
            train(config, tmp_path / "again")
    train(config, tmp_path / "again")
    train(recipe(data, *LORA, *CHOP, "data.evaluation=", "teacher.dtype=float32"), tmp_path / "two")
    assert bits(tmp_path / "again") == bits(tmp_path / "once")
    for name in ("loss", "kl", "hidden"):
        once = lines(tmp_path / "once", name)
        assert list(lines(tmp_path / "two", name).values()) == pytest.approx(
            list(once.values()), rel=1e-5, abs=1e-9
        )
    assert once[4] > 0, "adapters have moved the student away"
    assert abs(lines(tmp_path / "once", "kl")[1]) < 1e-6
    assert not any("blocks" in name and "norm" in name for name in bits(tmp_path / "once"))


def test_a_base_of_four_bits_teaches_as_it_is(data: Path, tmp_path: Path) -> None:
    config = recipe(data, *LORA, "adapter.base=nf4", *CHOP, "data.evaluation=", "total_steps=6")
    train(config, tmp_path)
    assert abs(lines(tmp_path, "kl")[1]) < 1e-6
    assert lines(tmp_path, "kl")[6] > 0.01


def test_a_resumed_run_wants_the_same_teacher(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its content, wherever it lies."""
    moved = shutil.copytree(data / "model", tmp_path / "moved")
    short = ("data.evaluation=", "checkpoints.every=1", "chop.keep=0,3", "teacher.model=parent")
    with monkeypatch.context() as patch:
        signal_after(patch, 1, signal.SIGTERM)
        with pytest.raises(SystemExit):
            train(recipe(data, *short, "total_steps=3"), tmp_path / "run")
    models.write_checkpoint(
        tmp_path / "other", seed=9, hidden_size=16, intermediate_size=24, head_dim=8
    )
    models.write_tokenizer(tmp_path / "other")
    now = (*short[:3], "total_steps=3")
    with pytest.raises(UserError, match=r"teacher of this run changed.*\n.*the weights"):
        train(recipe(data, *now, f"teacher.model={tmp_path / 'other'}"), tmp_path / "run")
    with pytest.raises(UserError, match="settings of this run changed"):
        train(recipe(data, *now), tmp_path / "run")
    with monkeypatch.context() as patch:
        signal_after(patch, 1, signal.SIGTERM)
        with pytest.raises(SystemExit):
            train(recipe(data, *now), tmp_path / "alone")
    with pytest.raises(UserError, match="began without a teacher"):
        train(recipe(data, *short, "total_steps=3"), tmp_path / "alone", force=True)
    train(recipe(data, *now, f"teacher.model={moved}"), tmp_path / "run")


def test_a_teacher_s_settings_mean_nothing_without_one() -> None:
    """So that runs of a time without them go on."""
    without: dict[str, Any] = {"seed": 0, "teacher": asdict(TeacherSettings())}
    assert not differences({"seed": 0}, without)
    assert differences(without, without | {"teacher": asdict(TeacherSettings(model="x"))})
    moved = {"seed": 0, "teacher": asdict(TeacherSettings(model="y"))}
    assert not differences(without | {"teacher": asdict(TeacherSettings(model="x"))}, moved)


def other_tokens(folder: Path) -> str:
    models.write_checkpoint(folder / "other", hidden_size=16)
    models.write_tokenizer(folder / "other", vocab_size=90)
    return f"teacher.model={folder / 'other'}"


def other_vocabulary(folder: Path) -> str:
    models.write_checkpoint(folder / "small", vocab_size=96)
    models.write_tokenizer(folder / "small", vocab_size=96)
    return f"teacher.model={folder / 'small'}"


def short_sighted(folder: Path) -> str:
    models.write_checkpoint(folder / "short", max_position_embeddings=8)
    models.write_tokenizer(folder / "short")
    return f"teacher.model={folder / 'short'}"


def with_parent(folder: Path, parent: str) -> str:
    """The chop, with another model where its parent was."""
    shutil.copytree(folder / "chopped", folder / "orphan")
    path = folder / "orphan/chopjax.json"
    record = json.loads(path.read_text())
    record["parent"]["name"] = parent
    path.write_text(json.dumps(record))
    return f"model={folder / 'orphan'}"


def deeper_parent(folder: Path) -> str:
    return with_parent(folder, str(folder / "wide"))


def lost_parent(folder: Path) -> str:
    return with_parent(folder, "/gone/model")


PARENT, KEEP, STORED = "teacher.model=parent", "chop.keep=0,3", "teacher.top_k=4"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((other_tokens, "chop.keep=0,3"), "its tokenizer is another than the student's"),
        ((other_vocabulary,), "a vocabulary of 96, and the student's has 97"),
        ((short_sighted,), "it has only 8 positions, and data.sequence_length is 16"),
        ((PARENT,), "no chop is recorded"),
        ((PARENT, deeper_parent), "5 layers; the student has 3, .* cut from 4. Name"),
        ((PARENT, lost_parent), "cut from /gone/model, which cannot be read"),
        (("teacher.model=wide", "teacher.hidden=1.0"), "5 layers; the student has 4. Name"),
        (("teacher.model=wide", "teacher.mimic=1.0", "teacher.map=0-3"), "width is 16 and .* 24"),
        ((PARENT, KEEP, "teacher.map=0,2,3"), "3 of the teacher's layers; the student has 2"),
        ((PARENT, KEEP, "teacher.map=0,4"), "teacher.map '0,4': there is no layer 4"),
        ((PARENT, KEEP, "teacher.map=3,0"), "layer 0 comes after 3"),
        (("teacher.model=nowhere/at/all",), "teacher.model: nowhere/at/all"),
        (("teacher.hidden=1.0",), "teacher: there is none"),
        ((PARENT, KEEP, "teacher.hidden=-1.0"), "teacher.hidden is -1.0: not below 0"),
        ((PARENT, KEEP, "teacher.logits=1.5"), "teacher.logits is 1.5: from 0 to 1"),
        ((PARENT, KEEP, "teacher.logits=0.0"), "all its weights are 0"),
        ((PARENT, KEEP, "teacher.temperature=0.0"), "teacher.temperature is 0.0: above 0"),
        ((PARENT, *CHOP, "teacher.map=0,1"), "teacher.map: not with chop.after_steps"),
        ((PARENT, KEEP, STORED), "give it or teacher.model"),
        ((STORED, "teacher.hidden=1.0"), "teacher.hidden: not with teacher.top_k"),
        ((STORED, "teacher.mimic=1.0"), "teacher.mimic: not with teacher.top_k"),
        ((PARENT, KEEP, "adapter.rank=2", "teacher.embedding=1.0"), "not with adapters"),
        ((STORED, "teacher.temperature=2.0"), "teacher.temperature: 1 with teacher.top_k"),
    ],
)
def test_what_is_refused_before_anything_is_loaded(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: tuple[Any, ...],
    message: str,
) -> None:
    monkeypatch.setattr(loop, "load", None)
    folder = tmp_path / "data"
    folder.mkdir()
    for each in data.iterdir():
        (folder / each.name).symlink_to(each)
    monkeypatch.chdir(folder)
    asked = [each if isinstance(each, str) else each(folder) for each in settings]
    with pytest.raises(UserError, match=message):
        train(recipe(folder, *asked), tmp_path / "run")
