"""Opening folders: what is accepted, and one clear error for everything that is not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import families
import numpy as np
import pytest
import safetensors.numpy
import transformers
from checkpoints import write_checkpoint

from chopjax.checkpoint.assets import check_assets
from chopjax.checkpoint.open import open_checkpoint
from chopjax.errors import UserError


@pytest.fixture(scope="module")
def single_original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("single") / "model")


@pytest.fixture(scope="module")
def sharded_original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("sharded") / "model", max_shard_size="30KB")


@pytest.fixture
def single(single_original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(single_original, tmp_path / "model"))


@pytest.fixture
def sharded(sharded_original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sharded_original, tmp_path / "model"))


def rewrite(folder: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Change the tensors of a single-file checkpoint."""
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path, {"format": "pt"})


def change_json(path: Path, change: Callable[[dict], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def error(model: Path | str) -> str:
    with pytest.raises(UserError) as raised:
        open_checkpoint(str(model))
    return str(raised.value)


@pytest.mark.parametrize("family", families.SAMPLE)
@pytest.mark.parametrize("size", ["5GB", "30KB"])
def test_every_tensor_as_transformers_has_it(tmp_path: Path, family: str, size: str) -> None:
    folder = write_checkpoint(tmp_path, family, max_shard_size=size)
    checkpoint = open_checkpoint(str(folder))
    assert (size == "5GB") == (len({t.file for t in checkpoint.tensors.values()}) == 1)
    state = transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()
    for name in checkpoint.tensors:
        assert checkpoint.array(name).tobytes() == state[name].numpy().tobytes()
    assert checkpoint.config.num_layers == 4
    assert (checkpoint.name, checkpoint.revision) == (str(folder), None)


def test_the_shared_checkpoints(mix_llama: Path, tinystories: Path) -> None:
    assert open_checkpoint(str(mix_llama)).config.num_layers == 12
    naming = open_checkpoint(str(tinystories)).match.naming
    assert naming.embedding_names == ("lm_head.weight",)


def test_neither_jax_nor_transformers_is_imported(single: Path) -> None:
    code = (
        "import sys; from chopjax.checkpoint.open import open_checkpoint; "
        "import chopjax.checkpoint.writer, chopjax.disk.atomic, chopjax.checkpoint.describe; "
        "import chopjax.checkpoint.provenance, chopjax.checkpoint.assets; "
        f"open_checkpoint({str(single)!r}); "
        "assert not {'jax', 'transformers', 'torch', 'flax', 'orbax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---------------------------------------------------------------------------- what MODEL may be


def test_no_such_folder(tmp_path: Path) -> None:
    message = error(tmp_path / "typo")
    assert "no such folder" in message
    assert "hub id" in message


def test_a_file_instead_of_a_folder(single: Path) -> None:
    assert "give the folder" in error(single / "model.safetensors")
    (single / "pytorch_model.bin").touch()
    assert "runs whatever code" in error(single / "pytorch_model.bin")


def test_revision_of_a_local_folder(single: Path) -> None:
    with pytest.raises(UserError, match="--revision"):
        open_checkpoint(str(single), "main")


def test_an_empty_folder(tmp_path: Path) -> None:
    assert "no config.json" in error(tmp_path)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "consolidated.00.pth"]
)
def test_pickles_are_refused_with_the_way_out(single: Path, name: str) -> None:
    (single / "model.safetensors").rename(single / name)
    message = error(single)
    assert name in message
    assert "save_pretrained" in message


def test_weights_of_another_name(single: Path) -> None:
    (single / "model.safetensors").rename(single / "consolidated.safetensors")
    assert "consolidated.safetensors" in error(single)
    (single / "consolidated.safetensors").unlink()
    assert "no weights" in error(single)


@pytest.mark.parametrize("content", ["{", "[1]", '"x"', "\xff", ""])
def test_broken_config(single: Path, content: str) -> None:
    (single / "config.json").write_bytes(content.encode("latin-1"))
    assert "config.json" in error(single)


def test_a_fifo_does_not_hang(single: Path) -> None:
    (single / "model.safetensors").unlink()
    os.mkfifo(single / "model.safetensors")
    assert "no weights" in error(single)


# --------------------------------------------------------------------- tensors against config.json


def test_all_wrong_tensors_are_listed_at_once(single: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.2.self_attn.rotary"] = np.zeros(3, np.float32)
        tensors["model.norm.weight"] = np.zeros(31, np.float32)

    rewrite(single, change)
    message = error(single)
    assert "missing: model.layers.1.mlp.up_proj.weight [56, 32]" in message
    assert "unknown: model.layers.2.self_attn.rotary [3]" in message
    assert "wrong shape: model.norm.weight is [31], config.json asks for [32]" in message


def test_config_with_another_number_of_layers(single: Path) -> None:
    change_json(single / "config.json", lambda c: c.update(num_hidden_layers=3))
    message = error(single)
    assert message.count("unknown: model.layers.3.") == 9
    change_json(single / "config.json", lambda c: c.update(num_hidden_layers=5))
    assert error(single).count("missing: model.layers.4.") == 9


def test_quantized_weights_are_refused(single: Path) -> None:
    rewrite(single, lambda t: t.update({"model.norm.weight": np.zeros(32, np.int8)}))
    assert "model.norm.weight is I8" in error(single)


def test_far_more_layers_than_the_files_have(single: Path) -> None:
    """One line at once; a list of what is missing would say nothing."""
    change_json(single / "config.json", lambda c: c.update(num_hidden_layers=9_999))
    message = error(single)
    assert "num_hidden_layers 9,999" in message
    assert "4 layers" in message
    assert len(message.splitlines()) == 1


# ----------------------------------------------------------------- what is no whole model, and why

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_pointer_of_git_lfs(single: Path, name: str) -> None:
    (single / name).write_bytes(POINTER)
    assert f"{name}: a pointer of git-LFS" in error(single)
    assert "git lfs pull" in error(single)


def test_tokenizer_files_are_looked_at_before_they_are_copied(single: Path) -> None:
    (single / "tokenizer.json").write_bytes(POINTER)
    with pytest.raises(UserError, match=r"tokenizer\.json: a pointer of git-LFS"):
        check_assets(single)
    (single / "tokenizer.json").unlink()
    (single / "tokenizer.json").symlink_to("/etc/passwd")
    with pytest.raises(UserError, match="outside the folder"):
        check_assets(single)


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"adapter_config.json": '{"base_model_name_or_path": "a/b"}'}, "merge_and_unload"),
        ({"adapter_config.json": '{"base_model_name_or_path": "a/b"}'}, "give a/b"),
        ({"model-Q4_K_M.gguf": ""}, "convert_hf_to_gguf"),
        ({"model_index.json": "{}"}, "diffusers"),
        ({"params.json": "{}", "consolidated.00.pth": ""}, "Meta's own format"),
        ({"inner/config.json": "{}"}, "give that folder"),
        ({"config.json": '{"_class_name": "UNet2DConditionModel"}'}, "diffusers"),
        ({"config.json": '{"model_type": "whisper"}'}, "whisper"),
        ({}, "holds nothing"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_folders_of_other_kinds(tmp_path: Path, files: dict[str, str], named: str) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert named in error(tmp_path)


def test_a_file_of_llama_cpp(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    assert "convert_hf_to_gguf" in error(tmp_path / "model.gguf")


def test_an_adapter_beside_the_config_of_its_model(single: Path) -> None:
    (single / "model.safetensors").unlink()
    (single / "adapter_config.json").write_text("{}")
    assert "merge_and_unload" in error(single)


@pytest.mark.parametrize(
    "text", ['{"a":' * 99 + "1" + "}" * 99, "[" * 99_999, '{"a": 1' + "0" * 5000]
)
def test_json_that_no_checkpoint_has(single: Path, text: str) -> None:
    (single / "config.json").write_text(text)
    assert str(single / "config.json") in error(single)


# ---------------------------------------------------------------------------------------- index

INDEX = "model.safetensors.index.json"


def test_index_and_files_disagree(sharded: Path) -> None:
    names = sorted(p.name for p in sharded.glob("*.safetensors"))
    first = safetensors.numpy.load_file(sharded / names[0])
    extra = {"surplus": np.zeros(2, np.float32), "model.norm.weight": np.zeros(32, np.float32)}
    safetensors.numpy.save_file(first | extra, sharded / names[0])

    def change(index: dict) -> None:
        index["weight_map"]["ghost"] = names[1]

    change_json(sharded / INDEX, change)
    message = error(sharded)
    assert f"unknown: surplus in {names[0]}" in message
    assert "duplicate: model.norm.weight" in message
    assert f"missing: ghost, which the index places in {names[1]}" in message


def test_missing_shards_are_all_named(sharded: Path) -> None:
    names = sorted(p.name for p in sharded.glob("*.safetensors"))
    for name in names[:2]:
        (sharded / name).unlink()
    message = error(sharded)
    assert all(f"missing file: {name}" in message for name in names[:2])


@pytest.mark.parametrize(
    "target", ["/etc/passwd", "../model.safetensors", "a/../../b", "..\\b", "a\nb", "sub/../../x"]
)
def test_index_that_points_outside(sharded: Path, target: str) -> None:
    shutil.copy(next(sharded.glob("*.safetensors")), sharded.parent / "model.safetensors")
    change_json(sharded / INDEX, lambda i: i["weight_map"].update(x=target))
    assert "outside the folder" in error(sharded)


@pytest.mark.parametrize("value", [{}, None, [], {"a": 1}, {"a": None}])
def test_index_without_a_map(sharded: Path, value: object) -> None:
    change_json(sharded / INDEX, lambda i: i.update(weight_map=value))
    assert "weight_map" in error(sharded)


def test_index_of_one_file_is_fine(single: Path) -> None:
    names = open_checkpoint(str(single)).tensors
    index = {"weight_map": dict.fromkeys(names, "model.safetensors")}
    (single / INDEX).write_text(json.dumps(index))
    assert open_checkpoint(str(single)).tensors.keys() == names.keys()


def test_single_file_wins_over_an_index_as_in_transformers(
    sharded: Path, single_original: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(single_original / "model.safetensors", sharded)
    files = {t.file.name for t in open_checkpoint(str(sharded)).tensors.values()}
    assert files == {"model.safetensors"}
    assert "model.safetensors is used" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------- links


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_links_out_of_the_folder_are_refused(single: Path, name: str) -> None:
    (single / name).rename(single.parent / name)
    (single / name).symlink_to(single.parent / name)
    assert "outside the folder" in error(single)


def test_links_within_the_folder_are_fine(single: Path) -> None:
    (single / "model.safetensors").rename(single / "weights")
    (single / "model.safetensors").symlink_to("weights")
    assert open_checkpoint(str(single)).tensors


def test_a_snapshot_of_the_hugging_face_cache(single: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, path in enumerate(single.iterdir()):
        path.rename(blobs / str(i))
        (snapshot / path.name).symlink_to(f"../../blobs/{i}")
    assert open_checkpoint(str(snapshot)).tensors
    (snapshot / "config.json").unlink()
    (tmp_path / "secret").write_text("{}")
    (snapshot / "config.json").symlink_to(tmp_path / "secret")
    assert "outside the folder" in error(snapshot)


def test_a_folder_that_is_itself_a_link(single: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(single)
    assert open_checkpoint(str(tmp_path / "link")).tensors
