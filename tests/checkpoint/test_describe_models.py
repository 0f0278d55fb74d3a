"""What is said of a model without reading its weights: each of its kinds, and what is none."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import torch
from checkpoints import write_checkpoint

from chopjax.checkpoint.describe import (
    Description,
    describe,
    has_weights,
    is_config,
    local_config,
    write_own,
)
from chopjax.checkpoint.load import load
from chopjax.checkpoint.orbax_folder import save_import
from chopjax.checkpoint.source import Checkpoint
from chopjax.errors import UserError
from chopjax.train.origin import Origin, run_record
from chopjax.train.settings import ChopSettings, Settings

LAYERS = 2
TINY = checkpoints.TINY | {"num_hidden_layers": LAYERS, "tie_word_embeddings": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "m", dtype=torch.bfloat16, **TINY)


@pytest.fixture(scope="module")
def imported(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("imported") / "i"
    loaded = load(str(model))
    save_import(out, loaded, loaded.params)
    return out


@pytest.fixture
def own(imported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(imported, tmp_path / "own"))


def run_folder(model: Path, workdir: Path, *steps: int) -> Path:
    """What a training run leaves at these steps, but for the weights: nobody may read them."""
    found = describe(str(model))
    workdir.mkdir()
    write_own(
        workdir, found.folder, found.raw_config, found.naming, None, found.metadata, None,
        "OWNER/PARENT", "abc123",
    )  # fmt: skip
    settings = Settings(model="OWNER/PARENT", chop=ChopSettings(keep="0,1", after_steps=3))
    origin = Origin("OWNER/PARENT", "abc123", found.raw_config, (0, 1), 3)
    fingerprints: dict[str, str | None] = {"tokenizer": "f" * 64}
    for step in steps:
        folder = workdir / "checkpoints" / str(step)
        folder.mkdir(parents=True)
        stores: dict[str, Any] = {"train": [], "held_out": None}
        record = run_record(settings, origin, fingerprints, stores, step, step * 100)
        (folder / "run.json").write_text(json.dumps(record))
    return workdir


# ----------------------------------------------------------------------- the kinds that there are


def test_a_hugging_face_folder(model: Path) -> None:
    found = describe(str(model))
    assert (found.name, found.source, found.revision) == (str(model), str(model), None)
    assert found.folder == model
    assert found.raw_config == json.loads((model / "config.json").read_text())
    assert (found.config.num_layers, found.config.embed_dim) == (LAYERS, 8)
    assert found.provenance is None
    assert found.metadata == {"format": "pt"}
    assert isinstance(found.weights, Checkpoint)
    assert found.naming.embedding_names == ("model.embed_tokens.weight",)
    assert found.dtypes is not None
    assert set(found.dtypes.values()) == {"BF16"}
    assert found.dtypes.keys() == found.weights.tensors.keys()


def test_an_import_says_what_its_model_said(model: Path, imported: Path) -> None:
    found, original = describe(str(imported)), describe(str(model))
    differing = {
        field.name
        for field in dataclasses.fields(Description)
        if getattr(found, field.name) != getattr(original, field.name)
    }
    assert differing == {"name", "folder", "weights"}
    assert found.name == str(imported)
    assert found.folder == imported / "huggingface"
    assert found.weights == imported / "params"


def test_a_copy_of_an_import_is_described_by_its_own_files(own: Path) -> None:
    config = own / "huggingface" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 77}))
    found = describe(str(own))
    assert found.config.max_positions == 77  # of this folder's config.json
    assert found.weights == own / "params"


def test_the_record_of_a_folder_is_read_as_it_was_written(model: Path, tmp_path: Path) -> None:
    found = describe(str(model))
    (tmp_path / "own" / "params").mkdir(parents=True)
    dtypes = dict.fromkeys(found.dtypes or {}, "F16")
    write_own(
        tmp_path / "own", found.folder, found.raw_config, found.naming, dtypes, {"by": "me"},
        None, "OWNER/NAME", "abc123",
    )  # fmt: skip
    again = describe(str(tmp_path / "own"))
    assert (again.source, again.revision) == ("OWNER/NAME", "abc123")
    assert (again.naming, again.dtypes, again.metadata) == (found.naming, dtypes, {"by": "me"})


def test_a_training_run_at_its_latest_step_and_at_another(model: Path, tmp_path: Path) -> None:
    run = run_folder(model, tmp_path / "run", 5, 40, 300)
    (run / "checkpoints" / "999.partial").mkdir()
    for asked, step in ((None, 300), (40, 40), (5, 5)):
        found = describe(str(run), step=asked)
        assert found.weights == run / "checkpoints" / str(step)
        assert found.dtypes is None
        assert (found.source, found.revision) == ("OWNER/PARENT", "abc123")
        assert found.provenance is not None
        assert found.provenance["parent"]["name"] == "OWNER/PARENT"
        (training,) = found.provenance["history"]
        assert (training["steps"], training["tokens"]) == (step, step * 100)
        assert training["chop_after_steps"] == 3


def test_a_step_that_says_nothing_of_its_run_adds_no_history(model: Path, tmp_path: Path) -> None:
    run = run_folder(model, tmp_path / "run", 5)
    (run / "checkpoints" / "5" / "run.json").unlink()
    assert describe(str(run)).provenance is None


# -------------------------------------------------------------------------------- what is refused


def test_a_revision_is_for_hub_ids(own: Path) -> None:
    with pytest.raises(UserError, match="--revision is for hub ids") as error:
        describe(str(own), revision="main")
    assert str(own) in str(error.value)


def test_a_step_is_for_training_runs(model: Path, own: Path) -> None:
    with pytest.raises(UserError, match=r"--step .* is none"):
        describe(str(model), step=5)
    with pytest.raises(UserError, match="written by `chopjax import`"):
        describe(str(own), step=5)


def test_steps_that_are_there_are_named_and_no_others(model: Path, tmp_path: Path) -> None:
    run = run_folder(model, tmp_path / "run", 5, 40)
    (run / "checkpoints" / "7").touch()  # a file is no checkpoint
    for step in (0, 7, 41):
        with pytest.raises(UserError, match=f"no checkpoint of step {step}; there are 5, 40$"):
            describe(str(run), step=step)


def test_of_many_steps_the_last_are_named(model: Path, tmp_path: Path) -> None:
    run = run_folder(model, tmp_path / "run", *range(1, 21))
    with pytest.raises(UserError) as error:
        describe(str(run), step=21)
    assert str(error.value).endswith("there are 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20")


@pytest.mark.parametrize(("part", "said"), [("huggingface", "config.json"), ("params", "weights")])
def test_a_part_that_is_missing(own: Path, part: str, said: str) -> None:
    shutil.rmtree(own / part)
    with pytest.raises(UserError, match=said) as error:
        describe(str(own))
    assert str(own) in str(error.value)
    assert f"{part}/" in str(error.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "\0"])
def test_a_record_that_is_not_json(own: Path, content: str) -> None:
    (own / "chopjax_folder.json").write_text(content)
    with pytest.raises(UserError, match=r"chopjax_folder\.json"):
        describe(str(own))


def test_a_record_of_a_step_that_is_damaged(model: Path, tmp_path: Path) -> None:
    run = run_folder(model, tmp_path / "run", 5, 40)
    path = run / "checkpoints" / "40" / "run.json"
    record = json.loads(path.read_text())
    del record["config"]["optimizer"]
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match="earlier checkpoint with --step") as error:
        describe(str(run))
    assert str(path) in str(error.value)
    assert describe(str(run), step=5).weights == run / "checkpoints" / "5"


def test_a_record_of_another_family(own: Path) -> None:
    """A prefix that this family's tensors never have."""
    path = own / "chopjax_folder.json"
    record = json.loads(path.read_text())
    names = ["transformer.embed_tokens.weight"]  # as that prefix would have it
    record["naming"] = {"prefix": "transformer.", "embedding_names": names}
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match="names that no tensor has"):
        describe(str(own))


# ------------------------------------------------------------------------- folders and their files


def test_the_configuration_of_what_lies_here(model: Path, own: Path, tmp_path: Path) -> None:
    raw = json.loads((model / "config.json").read_text())
    assert local_config(str(model)) == raw
    assert local_config(str(model / "config.json")) == raw
    assert local_config(str(own)) == raw
    assert local_config("OWNER/NAME") is None
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no config\.json"):
        local_config(str(tmp_path / "empty"))
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(UserError, match=r"other\.json"):
        local_config(str(tmp_path / "other.json"))


def test_a_configuration_is_a_file_of_json(model: Path, tmp_path: Path) -> None:
    assert is_config(model / "config.json")
    assert not is_config(model)
    assert not is_config(model / "model.safetensors")
    (tmp_path / "folder.json").mkdir()
    assert not is_config(tmp_path / "folder.json")
    assert not is_config(tmp_path / "absent.json")


def test_whether_there_are_weights(model: Path, own: Path, tmp_path: Path) -> None:
    assert has_weights(model)
    shutil.rmtree(own / "params")
    assert has_weights(own)  # chopjax made it
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(model / "config.json", bare)
    assert not has_weights(bare)
    for name in ("model.safetensors.index.json", "m.gguf", "pytorch_model.bin"):
        (bare / name).touch()
        assert has_weights(bare), name
        (bare / name).unlink()
