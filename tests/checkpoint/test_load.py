"""Parameters from disk: layers left out, shards, faulty values, damaged imports."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import families
import jax
import numpy as np
import pytest
import safetensors.numpy
import torch
from checkpoints import write_checkpoint
from flax.traverse_util import flatten_dict

from chopjax.checkpoint.load import load
from chopjax.checkpoint.open import open_checkpoint
from chopjax.checkpoint.orbax_folder import save_import
from chopjax.checkpoint.safetensors_file import TensorInfo
from chopjax.errors import UserError
from chopjax.models import parameters


def same(a: object, b: object) -> bool:
    equal = jax.tree.map(lambda x, y: x.dtype == y.dtype and np.array_equal(x, y), a, b)
    return jax.tree.all(equal)


def rewrite(folder: Path, **tensors: np.ndarray) -> None:
    path = folder / "model.safetensors"
    found = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file(found | tensors, path, {"format": "pt"})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {family: write_checkpoint(folder / family, family) for family in families.SAMPLE}


@pytest.mark.parametrize("family", families.SAMPLE)
def test_parameters_have_the_layout(models: dict[str, Path], family: str) -> None:
    loaded = load(str(models[family]))
    shapes = {path: leaf.shape for path, leaf in flatten_dict(loaded.params, sep="/").items()}
    assert shapes == parameters.shapes(loaded.config)
    # One matrix by hand: query of layer 2, [D, N, H].
    query = np.asarray(loaded.params["blocks"]["attention"]["query"][2])
    checkpoint = open_checkpoint(str(models[family]))
    if family == "gpt2":
        matrix = checkpoint.array("transformer.h.2.attn.c_attn.weight")[:, :32]
    else:
        prefix = "model.decoder" if family == "opt" else "model"
        matrix = checkpoint.array(f"{prefix}.layers.2.self_attn.q_proj.weight").T
    assert np.array_equal(query.reshape(32, -1), matrix)


@pytest.mark.parametrize("family", families.SAMPLE)
def test_keep_is_slicing_and_reads_nothing_else(
    models: dict[str, Path], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load(str(models[family]))
    opened: set[str] = set()
    before = TensorInfo.open

    def noted(tensor: TensorInfo) -> Any:
        opened.add(tensor.name)
        return before(tensor)

    monkeypatch.setattr(TensorInfo, "open", noted)
    kept = load(str(models[family]), keep=(0, 3))
    assert not any(f".{layer}." in name for name in opened for layer in (1, 2))
    assert kept.config == whole.config.keep((0, 3))
    blocks = jax.tree.map(lambda w: w[np.array([0, 3])], whole.params["blocks"])
    assert same(kept.params, whole.params | {"blocks": blocks})
    assert kept.raw_config == whole.raw_config


def test_keep_of_an_import(models: dict[str, Path], tmp_path: Path) -> None:
    loaded = load(str(models["llama"]))
    save_import(tmp_path / "import", loaded, loaded.params)
    for keep in (None, (0, 3), (1,)):
        direct = load(str(models["llama"]), keep=keep)
        through = load(str(tmp_path / "import"), keep=keep)
        assert same(direct.params, through.params)
        assert (direct.config, direct.dtypes) == (through.config, through.dtypes)


@pytest.mark.parametrize("keep", [(), (1, 0), (0, 0), (0, 4), (-1, 2)])
def test_layers_that_are_not_there(models: dict[str, Path], keep: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"lie in 0\.\.3"):
        load(str(models["llama"]), keep=keep)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_type_of_every_parameter(models: dict[str, Path], tmp_path: Path, dtype: str) -> None:
    loaded = load(str(models["llama"]))
    save_import(tmp_path / "import", loaded, loaded.params)
    expected = jax.tree.map(lambda w: np.asarray(w).astype(dtype), loaded.params)
    assert same(load(str(models["llama"]), dtype=dtype).params, expected)
    assert same(load(str(tmp_path / "import"), dtype=dtype).params, expected)


# -------------------------------------------------------------------------------- faulty values


def test_nan_is_a_warning_that_names_the_tensor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_checkpoint(tmp_path / "model", dtype=torch.float16)
    faulty = {
        "model.layers.1.mlp.up_proj.weight": np.full((56, 32), np.nan, np.float16),
        "model.norm.weight": np.full(32, -np.inf, np.float16),
    }
    rewrite(model, **faulty)
    load(str(model))
    message = capsys.readouterr().err
    assert all(f"  {name}\n" in message for name in faulty)
    assert message.count("model.") == 2
    load(str(model), keep=(0, 2))  # the faulty layer is not looked at
    assert "layers.1" not in capsys.readouterr().err
    for dtype in (None, "float32"):
        with pytest.raises(UserError, match="NaN or infinity") as error:
            load(str(model), dtype=dtype, strict=True)
        assert all(name in str(error.value) for name in faulty)


def test_values_too_large_for_the_type(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model")
    rewrite(model, **{"model.norm.weight": np.full(32, 1e6, np.float32)})
    with pytest.raises(UserError, match=r"model\.norm\.weight .* too large for float16"):
        load(str(model), dtype="float16")


def test_float64_needs_a_type(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", dtype=torch.float64)
    with pytest.raises(UserError, match="is float64"):
        load(str(model))
    assert load(str(model), dtype="float32").params["final_norm"]["scale"].dtype == np.float32


def test_tied_tables_must_agree(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", tie_word_embeddings=True)
    table = np.array(open_checkpoint(str(model)).array("model.embed_tokens.weight"))
    rewrite(model, **{"lm_head.weight": table})
    load(str(model))
    table[-1, -1] = np.nextafter(table[-1, -1], np.float32(9))
    rewrite(model, **{"lm_head.weight": table})
    with pytest.raises(UserError, match="are tied, but they differ"):
        load(str(model))


def test_parameters_that_are_only_read_are_the_same(models: dict[str, Path]) -> None:
    own, shared = (
        load(str(models["llama"]), dtype="bfloat16", read_only=only).params
        for only in (False, True)
    )
    jax.tree.map(np.testing.assert_array_equal, own, shared)


# ------------------------------------------------------------------------------- damaged imports


@pytest.fixture(scope="module")
def imported(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("imports") / "import"
    loaded = load(str(models["llama"]))
    save_import(out, loaded, loaded.params)
    return out


def damage(path: Path, way: int) -> None:
    content = bytearray(path.read_bytes())
    if way == 0:
        path.write_bytes(content[: len(content) // 2])
    elif way == 1:
        path.unlink()
    else:
        content[len(content) // 2] ^= 0x04
        path.write_bytes(content)


def test_every_damaged_file_is_named(imported: Path, tmp_path: Path) -> None:
    files = sorted((imported / "params").rglob("*"))
    files = [path for path in files if path.is_file() and path.stat().st_size]
    assert len(files) > 5
    for i, file in enumerate(files):
        folder = Path(shutil.copytree(imported, tmp_path / str(i)))
        path = folder / file.relative_to(imported)
        damage(path, i % 3)
        with pytest.raises(UserError) as error:
            load(str(folder))
        assert str(path) in str(error.value)


@pytest.mark.parametrize("way", [0, 1])
@pytest.mark.parametrize("name", ["chopjax_folder.json", "huggingface/config.json"])
def test_damaged_description(imported: Path, tmp_path: Path, name: str, way: int) -> None:
    folder = Path(shutil.copytree(imported, tmp_path / "import"))
    damage(folder / name, way)
    with pytest.raises(UserError, match="config.json" if way else Path(name).name):
        load(str(folder))


def test_an_import_without_weights(imported: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(imported, tmp_path / "import"))
    shutil.rmtree(folder / "params")
    with pytest.raises(UserError, match="no weights"):
        load(str(folder))


def test_config_that_disagrees_with_an_import(imported: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(imported, tmp_path / "import"))
    config = folder / "huggingface" / "config.json"
    config.write_text(
        config.read_text().replace('"num_hidden_layers": 4', '"num_hidden_layers": 3')
    )
    with pytest.raises(UserError, match="wrong shape: blocks/attention/query"):
        load(str(folder))


def test_our_own_folder_is_not_a_hugging_face_checkpoint(imported: Path) -> None:
    with pytest.raises(UserError, match="chopjax export"):
        open_checkpoint(str(imported))


# ------------------------------------------------------------------------------- many devices

SHARDED = """
import os, sys
import jax, numpy as np
from chopjax.checkpoint import pieces
from chopjax.checkpoint.describe import describe
from chopjax.checkpoint.load import load
from chopjax.checkpoint.orbax_folder import save_import
from chopjax.models import parameters
from chopjax.models.mesh import make_mesh, shardings
from flax.traverse_util import flatten_dict
from pathlib import Path

pieces.GAP = 0  # rows are short here
preadv, count = os.preadv, 0
def counted(*arguments):
    global count
    came = preadv(*arguments)
    count += came
    return came
os.preadv = counted

assert len(jax.devices()) == 8
for family, sizes in (("llama", (2, 2, 2)), ("gpt2", (1, 4, 2))):
    model = sys.argv[1] + "/" + family
    whole = load(model)
    where = shardings(whole.config, make_mesh(*sizes))
    count = 0
    loaded = load(model, shardings=where)
    # Every byte is read once, however many devices hold it.
    assert count == sum(leaf.nbytes for leaf in jax.tree.leaves(whole.params))
    out = Path(sys.argv[2]) / family
    save_import(out, loaded, loaded.params)
    other = shardings(whole.config, make_mesh(1, 2, 4))
    for params, asked in (
        (loaded.params, where),
        (load(str(out), shardings=other).params, other),
        (load(str(out)).params, None),
    ):
        for path, leaf in flatten_dict(params, sep="/").items():
            expected = flatten_dict(whole.params, sep="/")[path]
            assert np.array_equal(np.asarray(leaf), np.asarray(expected)), path
            if asked:
                assert leaf.sharding == flatten_dict(asked, sep="/")[path], path
    config = whole.config.keep((0, 2))
    kept = shardings(config, make_mesh(*sizes))
    for source in (model, str(out)):
        half = load(source, keep=(1, 3), shardings=kept)
        query = half.params["blocks"]["attention"]["query"]
        assert query.sharding == kept["blocks"]["attention"]["query"]
        expected = np.asarray(whole.params["blocks"]["attention"]["query"])[[1, 3]]
        assert np.array_equal(np.asarray(query), expected)
"""


def test_parameters_are_born_sharded(models: dict[str, Path], tmp_path: Path) -> None:
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8"}
    folder = next(iter(models.values())).parent
    command = [sys.executable, "-c", SHARDED, str(folder), str(tmp_path)]
    subprocess.run(command, env=environment, check=True)
