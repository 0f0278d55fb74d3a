"""Parameters on disk: they come back bit for bit, and damage is named before anything is read."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import write_checkpoint
from flax.traverse_util import flatten_dict, unflatten_dict
from orbax.checkpoint import v1 as ocp

from chopjax.checkpoint import orbax_folder
from chopjax.checkpoint.load import Loaded, load
from chopjax.checkpoint.manifest import MANIFEST, write_manifest
from chopjax.checkpoint.orbax_folder import (
    PYTREE,
    check_files,
    load_params,
    save_import,
    save_params,
    stored,
    unread_params,
)
from chopjax.errors import UserError
from chopjax.models.parameters import shapes


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """A model of two layers whose norms are float32 and whose other parameters are not."""
    model = write_checkpoint(
        tmp_path_factory.mktemp("model") / "m",
        vocab_size=11,
        hidden_size=8,
        intermediate_size=12,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_hidden_layers=2,
    )
    found = load(str(model))
    flat = flatten_dict(found.params, sep="/")
    types = {"norm": jnp.float32, "mlp": jnp.float16}
    for path, leaf in flat.items():
        kind = next((t for word, t in types.items() if word in path), jnp.bfloat16)
        flat[path] = leaf.astype(kind)
    # Bits that arithmetic would not leave alone: a payload in a NaN, -0, infinity, a subnormal.
    odd = np.array([0x7FC01234, 0x80000000, 0xFF800000, 1, 0xFFC00001, 2, 3, 4], np.uint32)
    flat["final_norm/scale"] = jnp.asarray(odd.view(np.float32))
    return Loaded(**(vars(found) | {"params": unflatten_dict(flat, sep="/")}))


@pytest.fixture(scope="module")
def saved(loaded: Loaded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FOLDER/params of an import."""
    folder = tmp_path_factory.mktemp("saved") / "import"
    save_import(folder, loaded, loaded.params)
    return folder / "params"


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "params"))


def contents(params: Any) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Path → type, shape and bits."""
    return {
        path: (str(leaf.dtype), tuple(leaf.shape), np.asarray(leaf).tobytes())
        for path, leaf in flatten_dict(params, sep="/").items()
    }


def abstract(params: Any) -> Any:
    return jax.tree.map(
        lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=w.sharding), params
    )


def array_file(folder: Path) -> Path:
    """The largest file of those with the bytes of arrays."""
    return max(folder.rglob("d/*"), key=lambda path: path.stat().st_size)


# ------------------------------------------------------------------------------ saved and read back


def test_what_is_read_back_is_what_was_saved(loaded: Loaded, saved: Path) -> None:
    wanted = contents(loaded.params)
    assert {kind for kind, _, _ in wanted.values()} == {"float32", "float16", "bfloat16"}
    assert contents(load_params(saved, abstract(loaded.params))) == wanted


def test_shapes_and_types_are_known_without_reading(loaded: Loaded, saved: Path) -> None:
    found = {
        path: (str(np.dtype(leaf.dtype)), tuple(leaf.shape))
        for path, leaf in stored(saved, shapes(loaded.config)).items()
    }
    wanted = {path: (kind, shape) for path, (kind, shape, _) in contents(loaded.params).items()}
    assert found == wanted


def test_each_parameter_is_read_when_it_is_asked_for(loaded: Loaded, folder: Path) -> None:
    unread = flatten_dict(unread_params(folder, shapes(loaded.config)), sep="/")
    wanted = contents(loaded.params)
    assert unread.keys() == wanted.keys()
    for path, leaf in unread.items():
        assert (str(leaf.dtype), leaf.shape) == wanted[path][:2]
        array = leaf.read()
        assert type(array) is np.ndarray
        assert (str(array.dtype), array.shape, array.tobytes()) == wanted[path]
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="params"):
        unread["embed/embedding"].read()


def test_only_what_is_named_is_read_and_in_the_type_asked_for(loaded: Loaded, saved: Path) -> None:
    query = loaded.params["blocks"]["attention"]["query"]
    wanted = {"blocks": {"attention": {"query": query.astype(jnp.float32)}}}
    assert contents(load_params(saved, abstract(wanted))) == contents(wanted)


def test_what_lies_beside_the_parameters_is_not_read(loaded: Loaded, tmp_path: Path) -> None:
    """As in a training run: the optimizer's state and the step."""
    tree = {"params": loaded.params, "momentum": loaded.params, "step": jnp.int32(3)}
    ocp.save(tmp_path / "5", tree, checkpointable_name=PYTREE)
    assert stored(tmp_path / "5", shapes(loaded.config)).keys() == contents(loaded.params).keys()
    found = load_params(tmp_path / "5", abstract(loaded.params))
    assert contents(found) == contents(loaded.params)


def test_other_parameters_do_not_take_the_place_of_saved_ones(loaded: Loaded, folder: Path) -> None:
    twice = jax.tree.map(lambda w: w * 2, loaded.params)
    with pytest.raises(UserError, match="could not be written") as error:
        save_params(folder, twice)
    assert str(folder) in str(error.value)
    check_files(folder)
    assert contents(load_params(folder, abstract(loaded.params))) == contents(loaded.params)


# ------------------------------------------------------------------------------------------ damage


def test_a_folder_as_it_was_written_is_whole(folder: Path) -> None:
    check_files(folder)


@pytest.mark.parametrize("where", [0.0, 0.5, 1.0])
def test_a_flipped_bit_is_named_with_its_file_and_no_other(
    loaded: Loaded, folder: Path, where: float
) -> None:
    path = array_file(folder)
    content = bytearray(path.read_bytes())
    content[round(where * (len(content) - 1))] ^= 0x01
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        check_files(folder)
    first, *others = str(error.value).splitlines()
    assert first == f"{folder}: damaged:"
    assert [line.strip() for line in others] == [f"{path}: the content has changed"]
    with pytest.raises(UserError, match="the content has changed"):
        unread_params(folder, shapes(loaded.config))


def test_missing_and_cut_files_are_named_together(folder: Path) -> None:
    cut = array_file(folder)
    size = cut.stat().st_size
    cut.write_bytes(cut.read_bytes()[:-3])
    missing = next(folder.rglob("_METADATA"))
    missing.unlink()
    with pytest.raises(UserError) as error:
        check_files(folder)
    lines = sorted(line.strip() for line in str(error.value).splitlines()[1:])
    assert lines == sorted([f"{missing}: missing", f"{cut}: {size - 3} bytes instead of {size}"])


def test_a_folder_without_its_digests_is_not_trusted(loaded: Loaded, folder: Path) -> None:
    (folder / MANIFEST).unlink()
    with pytest.raises(UserError, match=f"{MANIFEST}: missing"):
        unread_params(folder, shapes(loaded.config))


@pytest.mark.parametrize("kind", ["absent", "empty", "text"])
def test_what_is_no_checkpoint_of_orbax(loaded: Loaded, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "params"
    if kind != "absent":
        path.mkdir()
    if kind == "text":
        (path / "_METADATA").write_text("no JSON")
    for act in (
        lambda: stored(path, shapes(loaded.config)),
        lambda: load_params(path, abstract(loaded.params)),
    ):
        with pytest.raises(UserError, match="damaged or not an Orbax checkpoint") as error:
            act()
        assert str(path) in str(error.value)


# ------------------------------------------------------------------ parameters of another model


def test_tensors_of_other_shape_missing_and_unknown_are_all_named(
    loaded: Loaded, tmp_path: Path
) -> None:
    flat = flatten_dict(loaded.params, sep="/")
    flat["final_norm/bias"] = flat.pop("final_norm/scale")
    flat["blocks/mlp/up"] = flat["blocks/mlp/up"][:, :, :10]
    save_params(tmp_path / "params", unflatten_dict(flat, sep="/"))
    write_manifest(tmp_path / "params")
    for look in (stored, unread_params):
        with pytest.raises(UserError, match=r"do not fit config\.json") as error:
            look(tmp_path / "params", shapes(loaded.config))
        said = [line.strip() for line in str(error.value).splitlines()]
        assert [line for line in said if "/" in line and str(tmp_path) not in line] == [
            "missing: final_norm/scale [8]",
            "unknown: final_norm/bias [8]",
            "wrong shape: blocks/mlp/up is [2, 8, 10], config.json asks for [2, 8, 12]",
        ]


def test_another_number_of_layers_is_refused_in_every_block(loaded: Loaded, saved: Path) -> None:
    with pytest.raises(UserError) as error:
        stored(saved, shapes(loaded.config.keep((1,))))
    said = str(error.value)
    assert "blocks/attention/query is [2, 8, 2, 4], config.json asks for [1, 8, 2, 4]" in said
    assert "final_norm" not in said
    assert "embed/embedding" not in said


# ------------------------------------------------------------------------------ the folder of all


def test_an_import_has_its_name_only_when_whole(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, params: Any) -> None:
        save_params(path, params)
        raise UserError("the disk is full")

    monkeypatch.setattr(orbax_folder, "save_params", full)
    with pytest.raises(UserError, match="the disk is full"):
        save_import(tmp_path / "a" / "import", loaded, loaded.params)
    assert list(tmp_path.iterdir()) == []


def test_an_import_replaces_an_import_only_where_it_may(loaded: Loaded, tmp_path: Path) -> None:
    out = tmp_path / "import"
    save_import(out, loaded, loaded.params)
    twice = jax.tree.map(lambda w: w * 2, loaded.params)
    with pytest.raises(UserError, match="--overwrite"):
        save_import(out, loaded, twice)
    assert contents(load(str(out)).params) == contents(loaded.params)
    save_import(out, loaded, twice, overwrite=True)
    assert contents(load(str(out)).params) == contents(twice)
    assert [path.name for path in tmp_path.iterdir()] == ["import"]
