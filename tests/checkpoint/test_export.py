"""Parameters become the files of a Hugging Face checkpoint, or nothing at all is written."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import families
import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch
from checkpoints import write_checkpoint
from flax.traverse_util import flatten_dict, unflatten_dict

from chopjax.checkpoint.export import export, export_model
from chopjax.checkpoint.load import Loaded, load
from chopjax.checkpoint.orbax_folder import Unread, save_import
from chopjax.checkpoint.provenance import compose
from chopjax.errors import UserError

SMALL: dict[str, dict[str, Any]] = {
    "llama": {
        "vocab_size": 11,
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "num_hidden_layers": 2,
    },
    "qwen3": {"num_hidden_layers": 2, "layer_types": None, "max_window_layers": 1},
    "gpt2": {"vocab_size": 11, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16},
    "opt": {"num_hidden_layers": 2, "vocab_size": 11},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        family: write_checkpoint(folder / family, family, torch.bfloat16, **SMALL[family])
        for family in families.SAMPLE
    }


@pytest.fixture(scope="module")
def llama(models: dict[str, Path]) -> Loaded:
    return load(str(models["llama"]))


def raw(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every tensor as the reference reads it: its type, its shape and its bytes."""
    content = (folder / "model.safetensors").read_bytes()
    return {
        name: (tensor["dtype"], tuple(tensor["shape"]), bytes(tensor["data"]))
        for name, tensor in safetensors.deserialize(content)
    }


def write(found: Loaded, out: Path, **changes: Any) -> Path:
    """Export what was loaded, with some of the arguments changed."""
    arguments: dict[str, Any] = {
        "config": found.config,
        "raw_config": found.raw_config,
        "params": found.params,
        "assets": found.folder,
        "out": out,
        "naming": found.naming,
        "metadata": found.metadata,
    }
    export(**(arguments | changes))
    return out


def stated(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return record


# --------------------------------------------------------------------------- what is written


@pytest.mark.parametrize("family", families.SAMPLE)
def test_the_reference_reads_the_same_names_types_and_bytes(
    models: dict[str, Path], tmp_path: Path, family: str
) -> None:
    found = load(str(models[family]))
    out = write(found, tmp_path / "out")
    before, after = raw(models[family]), raw(out)
    assert len(before) > 10
    assert before == after


def test_one_changed_value_changes_one_tensor_in_one_place(llama: Loaded, tmp_path: Path) -> None:
    flat = flatten_dict(llama.params, sep="/")
    flat["blocks/attention/key"] = flat["blocks/attention/key"].at[1, 5, 0, 2].set(64)
    out = write(llama, tmp_path / "out", params=unflatten_dict(flat, sep="/"))
    before = safetensors.numpy.load_file(llama.folder / "model.safetensors")
    after = safetensors.numpy.load_file(out / "model.safetensors")
    (name,) = [name for name in before if before[name].tobytes() != after[name].tobytes()]
    assert name == "model.layers.1.self_attn.k_proj.weight"
    assert np.argwhere(before[name] != after[name]).tolist() == [[2, 5]]  # [out, in] of a Linear
    assert after[name][2, 5] == 64


def test_keys_of_the_configuration_stay(llama: Loaded, tmp_path: Path) -> None:
    config = llama.raw_config | {"note": {"b": [1, None], "a": "ü"}, "another_key": 0.1}
    out = write(llama, tmp_path / "out", raw_config=config)
    assert stated(out) == config
    assert list(stated(out)) == list(config)
    other = write(llama, tmp_path / "other", raw_config=config, dtype="float16")
    assert stated(other) == config | {"dtype": "float16"}


@pytest.mark.parametrize(("dtype", "name"), [("float32", "F32"), ("float16", "F16")])
def test_the_type_asked_for_is_stated_and_written(
    llama: Loaded, tmp_path: Path, dtype: str, name: str
) -> None:
    """A config.json that states none states it in the spelling that all versions read."""
    config = {key: value for key, value in llama.raw_config.items() if key != "dtype"}
    dtypes = dict.fromkeys(llama.dtypes or {}, "BF16")  # what is asked for comes first
    out = write(llama, tmp_path / "out", raw_config=config, dtype=dtype, dtypes=dtypes)
    assert stated(out) == config | {"torch_dtype": dtype}
    expected = safetensors.numpy.load_file(llama.folder / "model.safetensors")
    for tensor, (found, _, content) in raw(out).items():
        assert found == name
        assert content == expected[tensor].astype(dtype).tobytes()


def test_without_any_word_of_a_type_it_is_float32(llama: Loaded, tmp_path: Path) -> None:
    config = {key: value for key, value in llama.raw_config.items() if key != "dtype"}
    out = write(llama, tmp_path / "out", raw_config=config)
    assert {found for found, _, _ in raw(out).values()} == {"F32"}
    assert stated(out) == config


def test_types_as_found_win_over_the_one_stated(llama: Loaded, tmp_path: Path) -> None:
    assert llama.dtypes is not None
    wanted = {name: "F32" if "norm" in name else "BF16" for name in llama.dtypes}
    out = write(llama, tmp_path / "out", dtypes=wanted)
    assert {name: found for name, (found, _, _) in raw(out).items()} == wanted
    assert stated(out)["dtype"] == "bfloat16"


def test_where_it_comes_from_is_written(llama: Loaded, tmp_path: Path) -> None:
    record = compose(None, "OWNER/NAME", "abc", 4, "first", {"remove": "2"}, (0, 1))
    out = write(llama, tmp_path / "out", provenance=record)
    assert json.loads((out / "chopjax.json").read_text()) == record
    assert not (write(llama, tmp_path / "plain") / "chopjax.json").exists()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_parameter_on_disk_is_read_once(
    models: dict[str, Path], tmp_path: Path, family: str
) -> None:
    """GPT-2 has tensors that are made of several parameters, and all have several layers."""
    found = load(str(models[family]))
    reads: Counter[str] = Counter()

    def unread(path: str, array: Any) -> Unread:
        def read() -> np.ndarray:
            reads[path] += 1
            return np.asarray(array)

        return Unread(array.shape, array.dtype, read)

    flat = flatten_dict(found.params, sep="/")
    params = unflatten_dict({path: unread(path, leaf) for path, leaf in flat.items()}, sep="/")
    out = write(found, tmp_path / "out", params=params)
    assert reads == dict.fromkeys(flat, 1)
    assert raw(out) == raw(models[family])


def test_what_was_exported_is_returned(llama: Loaded, tmp_path: Path) -> None:
    save_import(tmp_path / "import", llama, llama.params)
    found = export_model(str(tmp_path / "import"), tmp_path / "out")
    assert (found.name, found.source) == (str(tmp_path / "import"), llama.source)
    assert found.config == llama.config
    assert raw(tmp_path / "out") == raw(llama.folder)


# ------------------------------------------------------------------------- nothing is half-written


def nothing_in(folder: Path) -> bool:
    return list(folder.iterdir()) == []


def broken(found: Loaded, error: BaseException) -> Any:
    """Parameters of which all can be read but the last one."""

    def refuse() -> np.ndarray:
        raise error

    flat = flatten_dict(found.params, sep="/")
    flat["final_norm/scale"] = Unread((8,), np.dtype(np.float32), refuse)
    return unflatten_dict(flat, sep="/")


@pytest.mark.parametrize("error", [UserError("damaged"), RuntimeError("x"), KeyboardInterrupt()])
def test_a_parameter_that_cannot_be_read(
    llama: Loaded, tmp_path: Path, error: BaseException
) -> None:
    with pytest.raises(type(error)):
        write(llama, tmp_path / "a" / "b" / "out", params=broken(llama, error))
    assert nothing_in(tmp_path)


def test_the_older_export_stays_where_the_new_one_fails(llama: Loaded, tmp_path: Path) -> None:
    out = write(llama, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(UserError, match="damaged"):
        write(llama, out, params=broken(llama, UserError("damaged")), overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    other = jax.tree.map(lambda w: w * 2, llama.params)
    write(llama, out, params=other, overwrite=True)
    assert raw(out).keys() == raw(llama.folder).keys()
    assert raw(out) != raw(llama.folder)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_with_something_in_it_is_refused(llama: Loaded, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r".*/out"):
            write(llama, out, overwrite=overwrite)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_input_is_not_overwritten(llama: Loaded, tmp_path: Path) -> None:
    out = write(llama, tmp_path / "out")
    again = load(str(out))
    with pytest.raises(UserError, match="--overwrite would delete"):
        write(again, out, overwrite=True)
    with pytest.raises(UserError, match="--overwrite would delete"):
        write(llama, out, overwrite=True, protect=(out / "model.safetensors",))
    assert raw(out) == raw(llama.folder)


def test_a_type_that_is_none_and_a_record_that_lacks_tensors(llama: Loaded, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="states the type 'float7'"):
        write(llama, tmp_path / "out", raw_config=llama.raw_config | {"dtype": "float7"})
    assert llama.dtypes is not None
    few = {name: found for name, found in llama.dtypes.items() if "q_proj" not in name}
    with pytest.raises(UserError, match=r"model\.layers\.1\.self_attn\.q_proj\.weight") as error:
        write(llama, tmp_path / "out", dtypes=few)
    assert "k_proj" not in str(error.value)
    assert nothing_in(tmp_path)


def test_parameters_with_one_too_many_or_too_few(llama: Loaded, tmp_path: Path) -> None:
    flat = flatten_dict(llama.params, sep="/")
    fewer = {path: leaf for path, leaf in flat.items() if path != "final_norm/scale"}
    for changed in (fewer, flat | {"final_norm/bias": np.zeros(8, np.float32)}):
        with pytest.raises(ValueError, match="shapes"):
            write(llama, tmp_path / "out", params=unflatten_dict(changed, sep="/"))
    assert nothing_in(tmp_path)


def test_only_folders_of_chopjax_are_exported(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a Hugging Face checkpoint already"):
        export_model(str(models["llama"]), tmp_path / "out")
    assert nothing_in(tmp_path)
