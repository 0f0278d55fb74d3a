"""Which parent a run has, how many layers are left at which step, and what a resumed run reads."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import checkpoints
import pytest
from checkpoints import write_checkpoint

from chopjax import cli
from chopjax.checkpoint.describe import describe
from chopjax.checkpoint.load import load
from chopjax.checkpoint.orbax_folder import save_import
from chopjax.checkpoint.safetensors_file import TensorInfo
from chopjax.errors import UserError
from chopjax.train import origin as room
from chopjax.train.origin import Origin, find_origin, from_record, run_record, write_assets
from chopjax.train.same_run import differences
from chopjax.train.settings import ChopSettings, Settings

LAYERS = 4
TINY = checkpoints.TINY | {"num_hidden_layers": LAYERS}
SCRATCH: dict[str, Any] = TINY | {
    "model_type": "llama",
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "m", **TINY)


def settings(model: Path, **chop: Any) -> Settings:
    return Settings(model=str(model), chop=ChopSettings(**chop))


# ------------------------------------------------------------------------------------- the parent


def test_a_model_that_keeps_its_layers(model: Path) -> None:
    origin, found = find_origin(settings(model))
    assert origin.name == str(model)
    assert (origin.revision, origin.keep, origin.chop_after) == (None, None, 0)
    assert origin.raw_config == json.loads((model / "config.json").read_text())
    assert found is not None
    assert (found.folder, found.config) == (model, origin.config_at(0))


@pytest.mark.parametrize(
    ("chop", "kept"),
    [
        ({"keep": "0,2-3"}, (0, 2, 3)),
        ({"keep": "1"}, (1,)),
        ({"strategy": "input", "remove": "2"}, (0, 3)),
        ({"strategy": "first", "remove": "75%"}, (0,)),
        ({"strategy": "deepest", "remove": "0.5"}, (0, 3)),
        ({"strategy": "middle", "remove": "1"}, (0, 2, 3)),
    ],
)
@pytest.mark.parametrize("scratch", [False, True])
def test_layers_by_a_list_and_by_a_strategy(
    model: Path, chop: dict[str, str], kept: tuple[int, ...], scratch: bool
) -> None:
    asked = settings(model, **chop, after_steps=7)
    if scratch:
        asked = dataclasses.replace(asked, model="", scratch=SCRATCH, tokenizer=str(model))
    origin, _ = find_origin(asked)
    assert (origin.keep, origin.chop_after) == (kept, 7)


def test_the_parent_of_an_import_is_what_was_imported(model: Path, tmp_path: Path) -> None:
    loaded = load(str(model))
    hub = dataclasses.replace(loaded, source="OWNER/NAME", revision="abc123")
    save_import(tmp_path / "import", hub, loaded.params)
    origin, found = find_origin(settings(tmp_path / "import"))
    assert (origin.name, origin.revision) == ("OWNER/NAME", "abc123")
    assert found is not None
    assert found.weights == tmp_path / "import" / "params"


def test_no_weight_is_read(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(tensor: TensorInfo) -> Any:
        raise AssertionError(tensor.name)

    monkeypatch.setattr(TensorInfo, "open", refuse)
    assert find_origin(settings(model, keep="0,3"))[0].keep == (0, 3)
    with pytest.raises(AssertionError, match=r"model\."):
        load(str(model))


def test_random_weights_have_no_parent(model: Path) -> None:
    scratch = dict(SCRATCH)
    origin, found = find_origin(Settings(scratch=scratch, tokenizer=str(model)))
    assert found is None
    assert (origin.name, origin.revision) == ("random weights", None)
    assert origin.raw_config == scratch
    assert origin.raw_config is not scratch
    assert origin.config_at(0).num_layers == LAYERS


def test_the_revision_is_asked_for_and_the_commit_is_kept(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None]] = []

    def hub(name: str, revision: str | None = None) -> Any:
        asked.append((name, revision))
        return dataclasses.replace(describe(str(model)), source=name, revision="c" * 40)

    monkeypatch.setattr(room, "describe", hub)
    for revision in ("main", ""):
        origin, _ = find_origin(Settings(model="OWNER/NAME", revision=revision))
        assert (origin.name, origin.revision) == ("OWNER/NAME", "c" * 40)
    assert asked == [("OWNER/NAME", "main"), ("OWNER/NAME", None)]


def test_the_shape_of_a_chopped_chop_is_said_in_the_first_parents_layers(
    model: Path, tmp_path: Path
) -> None:
    assert cli.main(["chop", str(model), str(tmp_path / "chopped"), "--keep", "0,2-3"]) == 0
    asked = dataclasses.replace(settings(tmp_path / "chopped", keep="0,2"), from_scratch=True)
    origin, found = find_origin(asked)
    assert origin.name == "random weights"
    assert origin.shape_of == {
        "name": str(model), "revision": None, "num_layers": 4, "kept_layers": [0, 3],
    }  # fmt: skip
    assert found is not None
    assert from_record(json.loads(json.dumps(origin.record()))) == origin


@pytest.mark.parametrize(
    ("chop", "said"),
    [
        ({"keep": "0,4"}, "there is no layer 4"),
        ({"keep": "0-3"}, "keeps all 4 layers"),
        ({"keep": "x"}, "is not a layer"),
        ({"strategy": "inptu", "remove": "1"}, "input"),
        ({"strategy": "input", "remove": "3"}, "can remove 1 to 2 of 4 layers"),
        ({"strategy": "input", "remove": "110%"}, "from 1 to 3"),
    ],
)
def test_layers_that_cannot_be_chosen(model: Path, chop: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        find_origin(settings(model, **chop))


# ------------------------------------------------------------------------- the layers at each step


@pytest.mark.parametrize(
    ("keep", "after", "layers"),
    [
        (None, 0, {0: 4, 1: 4, 99: 4}),
        ((0, 3), 0, {0: 2, 1: 2, 99: 2}),
        ((0, 3), 5, {0: 4, 4: 4, 5: 2, 6: 2, 99: 2}),
    ],
)
def test_the_chop_comes_right_after_its_step(
    model: Path, keep: tuple[int, ...] | None, after: int, layers: dict[int, int]
) -> None:
    whole = describe(str(model)).config
    origin = Origin("m", None, json.loads((model / "config.json").read_text()), keep, after)
    for step, count in layers.items():
        config = origin.config_at(step)
        assert config.num_layers == count
        assert config == (whole if count == LAYERS else whole.keep((0, 3)))


# ------------------------------------------------------------------------------- what is recorded


@pytest.mark.parametrize("keep", ["", "0,2-3"])
@pytest.mark.parametrize("scratch", [False, True])
def test_a_record_is_read_as_what_it_was(model: Path, keep: str, scratch: bool) -> None:
    asked = settings(model, keep=keep, after_steps=2 if keep else 0)
    if scratch:
        asked = dataclasses.replace(asked, model="", scratch=SCRATCH, tokenizer=str(model))
    origin, _ = find_origin(asked)
    origin = dataclasses.replace(origin, revision=None if scratch else "abc123")
    again = from_record(json.loads(json.dumps(origin.record())))
    assert again == origin
    assert again.keep == ((0, 2, 3) if keep else None)  # a tuple, as JSON has none
    assert [again.config_at(n) for n in (0, 1, 2)] == [origin.config_at(n) for n in (0, 1, 2)]


def test_a_record_of_other_fields_is_none(model: Path) -> None:
    record = find_origin(settings(model))[0].record()
    earlier = {name: value for name, value in record.items() if name != "shape_of"}
    assert from_record(earlier) == from_record(record)  # 0.1.0 had none
    with pytest.raises(KeyError):
        from_record({name: value for name, value in record.items() if name != "keep"})
    for changed in (
        record | {"more": 1},
        {name: value for name, value in record.items() if name != "chop_after"},
    ):
        with pytest.raises(TypeError):
            from_record(changed)


def test_what_a_resumed_run_must_agree_with(model: Path) -> None:
    asked = settings(model, keep="0,3", after_steps=5)
    origin, _ = find_origin(asked)
    fingerprints: dict[str, str | None] = {"tokenizer": "t" * 64, "data": None}
    stores = {"train": [{"name": "a", "share": 1.0}], "held_out": None}
    records = {
        step: json.loads(json.dumps(run_record(asked, origin, fingerprints, stores, step, 64)))
        for step in (4, 5)
    }
    for step, layers in ((4, 4), (5, 2)):
        record = records[step]
        assert (record["step"], record["tokens"], record["num_layers"]) == (step, 64, layers)
        assert record["kept_layers"] == [0, 3]
        assert record["fingerprints"] == fingerprints
        assert record["stores"] == stores
        assert from_record(record["origin"]) == origin
        assert differences(record["config"], dataclasses.asdict(asked)) == []
        earlier = dict(record["config"])
        del earlier["from_scratch"]  # 0.1.0 did not have it
        assert differences(earlier, dataclasses.asdict(asked)) == []
    changed = dataclasses.replace(
        asked, seed=1, chop=dataclasses.replace(asked.chop, after_steps=6)
    )
    assert sorted(differences(records[5]["config"], dataclasses.asdict(changed))) == [
        "chop.after_steps: 5 -> 6",
        "seed: 0 -> 1",
    ]


def test_without_a_chop_no_layers_are_said_to_be_kept(model: Path) -> None:
    asked = settings(model)
    record = run_record(asked, find_origin(asked)[0], {}, {}, 9, 0)
    assert (record["num_layers"], record["kept_layers"]) == (LAYERS, None)


# -------------------------------------------------------------------------- what export will need


def test_assets_are_those_of_the_model_that_the_run_ends_with(model: Path, tmp_path: Path) -> None:
    asked = settings(model, strategy="input", remove="2", after_steps=5)
    origin, found = find_origin(asked)
    tmp_path.joinpath("run").mkdir()
    write_assets(tmp_path / "run", origin, found, asked)
    raw = json.loads((tmp_path / "run" / "huggingface" / "config.json").read_text())
    assert raw == origin.raw_config | {"num_hidden_layers": 2}
    record = json.loads((tmp_path / "run" / "huggingface" / "chopjax.json").read_text())
    assert (record["strategy"], record["kept_layers"]) == ("input", [0, 3])
    assert record["parent"] == {"name": str(model), "revision": None, "num_layers": LAYERS}
    assert record["settings"]["after_steps"] == 5


def test_assets_of_random_weights_need_the_folder_of_a_tokenizer(
    model: Path, tmp_path: Path
) -> None:
    asked = Settings(scratch=SCRATCH, tokenizer=str(tmp_path / "absent"))
    origin, found = find_origin(asked)
    tmp_path.joinpath("run").mkdir()
    with pytest.raises(UserError, match=r"tokenizer: .*absent is not a folder"):
        write_assets(tmp_path / "run", origin, found, asked)
    assert list((tmp_path / "run").iterdir()) == []
