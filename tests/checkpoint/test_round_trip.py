"""export(import(x)) is x, byte for byte, and what comes out loads in transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import families
import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from checkpoints import write_checkpoint, write_tokenizer
from flax.traverse_util import flatten_dict

from chopjax.checkpoint.describe import describe, write_own
from chopjax.checkpoint.export import export, export_model
from chopjax.checkpoint.load import load
from chopjax.checkpoint.open import open_checkpoint
from chopjax.checkpoint.orbax_folder import save_import, save_params
from chopjax.errors import UserError


def round_trip(model: Path, folder: Path, **options: Any) -> Path:
    """Through memory and through Orbax; both must give the same files."""
    loaded = load(str(model))
    save_import(folder / "import", loaded, loaded.params)
    export_model(str(folder / "import"), folder / "out", **options)
    return folder / "out"


def assert_same_tensors(a: Path, b: Path) -> None:
    first, second = open_checkpoint(str(a)), open_checkpoint(str(b))
    bound = {binding.source for binding in first.match.bindings}
    assert second.tensors.keys() == bound
    for name in bound:
        assert second.tensors[name].dtype == first.tensors[name].dtype
        assert second.array(name).tobytes() == first.array(name).tobytes()
    assert second.metadata == first.metadata


# Every family with every type, tied and untied, in one file and in shards.
CASES = [
    pytest.param(
        family, dtype, tied, size, marks=[pytest.mark.thorough] if dtype == "float16" else []
    )
    for i, family in enumerate(families.SAMPLE)
    for j, dtype in enumerate(("float32", "bfloat16", "float16"))
    for tied, size in (
        [(True, "5GB"), (False, "20KB")] if (i + j) % 2 else [(True, "20KB"), (False, "5GB")]
    )
]


@pytest.mark.parametrize(("family", "dtype", "tied", "size"), CASES)
def test_byte_for_byte(tmp_path: Path, family: str, dtype: str, tied: bool, size: str) -> None:
    model = write_checkpoint(
        tmp_path / "model", family, getattr(torch, dtype), size, tie_word_embeddings=tied
    )
    write_tokenizer(model)
    out = round_trip(model, tmp_path)
    assert_same_tensors(model, out)
    for path in model.iterdir():
        if path.suffix != ".safetensors" and "index" not in path.name:
            assert (out / path.name).read_bytes() == path.read_bytes(), path.name
    assert stated(out) == dtype


def stated(folder: Path) -> str:
    raw = json.loads((folder / "config.json").read_text())
    return raw.get("dtype", raw.get("torch_dtype"))


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 12}),
        ("opt", {"word_embed_proj_dim": 16, "do_layer_norm_before": False}),
        ("opt", {"enable_bias": False, "layer_norm_elementwise_affine": False}),
    ],
)
def test_options(tmp_path: Path, family: str, options: dict[str, Any]) -> None:
    model = write_checkpoint(tmp_path / "model", family, **options)
    assert_same_tensors(model, round_trip(model, tmp_path))


def test_the_shared_checkpoints(tmp_path: Path, mix_llama: Path, tinystories: Path) -> None:
    for model in (mix_llama, tinystories):
        out = round_trip(model, tmp_path / model.name)
        assert_same_tensors(model, out)
        for path in out.iterdir():
            if path.suffix != ".safetensors" and path.name != ".chopjax.json":
                assert path.read_bytes() == (model / path.name).read_bytes()
        assert not (out / "METRICS.json").exists()


def test_shards_of_the_size_asked_for(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model")
    out = round_trip(model, tmp_path, max_shard_bytes=20_000)
    assert_same_tensors(model, out)
    files = list(out.glob("*.safetensors"))
    assert len(files) > 3
    assert all(path.stat().st_size < 22_000 for path in files)


# ------------------------------------------------------------------------------- tensor by tensor


def rewrite(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", {"format": "pt", "by": "me"})


def read(folder: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(folder / "model.safetensors")


def test_mixed_types_come_back_each_in_its_own(tmp_path: Path) -> None:
    """Norms in float32, and a layer whose matrices are in other types than the rest."""
    model = write_checkpoint(tmp_path / "model", dtype=torch.bfloat16)
    tensors = read(model)
    for name in tensors:
        if "norm" in name:
            tensors[name] = tensors[name].astype(np.float32) * np.float32(1.0001)
        if ".2." in name and "mlp" in name:
            tensors[name] = tensors[name].astype(np.float16)
    rewrite(model, tensors)
    loaded = load(str(model))
    assert loaded.params["blocks"]["attention"]["query"].dtype == ml_dtypes.bfloat16
    assert loaded.params["blocks"]["mlp"]["up"].dtype == np.float32  # holds both types exactly
    assert_same_tensors(model, round_trip(model, tmp_path))


def test_every_bit_pattern_survives(tmp_path: Path) -> None:
    """Infinities, NaN payloads, subnormals and negative zeros: weights only move."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        model = write_checkpoint(tmp_path / str(dtype) / "model", dtype=dtype)
        rng = np.random.default_rng(0)
        tensors = {
            name: rng.integers(0, 256, array.nbytes, np.uint8)
            .view(array.dtype)
            .reshape(array.shape)
            for name, array in read(model).items()
        }
        rewrite(model, tensors)
        assert_same_tensors(model, round_trip(model, model.parent))


@pytest.mark.parametrize("names", ["both", "head"])
def test_tied_tables_keep_the_names_found(tmp_path: Path, names: str) -> None:
    model = write_checkpoint(tmp_path / "model", tie_word_embeddings=True)
    tensors = read(model)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    if names == "head":
        del tensors["model.embed_tokens.weight"]
    rewrite(model, tensors)
    out = round_trip(model, tmp_path)
    assert_same_tensors(model, out)
    assert ("model.embed_tokens.weight" in open_checkpoint(str(out)).tensors) == (names == "both")


def test_names_without_a_prefix_and_old_buffers(tmp_path: Path) -> None:
    """GPT-2 as it was first published: no prefix, and masks among the weights."""
    model = write_checkpoint(tmp_path / "model", "gpt2")
    tensors = {k.removeprefix("transformer."): v for k, v in read(model).items()}
    for layer in range(4):
        tensors[f"h.{layer}.attn.bias"] = np.ones((1, 1, 512, 512), np.uint8)
    rewrite(model, tensors)
    out = round_trip(model, tmp_path)
    assert_same_tensors(model, out)
    assert "h.0.attn.bias" not in open_checkpoint(str(out)).tensors


# ------------------------------------------------------------------------------------ asset files


def test_only_known_files_come_along(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model")
    wanted = [
        "tokenizer.model",
        "vocab.json",
        "merges.txt",
        "added_tokens.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "additional_chat_templates/tool_use.jinja",
        "LICENSE.txt",
        "README.md",
    ]
    unwanted = ["modeling_llama.py", "optimizer.pt", "training_args.bin", "state.pkl"]
    for name in (*wanted, *unwanted):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_bytes(b"\x00bytes of " + name.encode())
    out = round_trip(model, tmp_path)
    for name in wanted:
        assert (out / name).read_bytes() == (model / name).read_bytes()
    assert not any((out / name).exists() for name in unwanted)


def test_a_tokenizer_that_is_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model")
    (tmp_path / "secret").write_text("key")
    (model / "tokenizer.json").symlink_to(tmp_path / "secret")
    loaded = load(str(model))
    with pytest.raises(UserError, match="outside the folder"):
        save_import(tmp_path / "import", loaded, loaded.params)
    assert not (tmp_path / "import").exists()


@pytest.mark.parametrize("spelling", ["torch_dtype", "dtype"])
def test_another_type_is_stated_in_the_spelling_found(tmp_path: Path, spelling: str) -> None:
    model = write_checkpoint(tmp_path / "model")
    raw = json.loads((model / "config.json").read_text())
    raw = {(spelling if key == "dtype" else key): value for key, value in raw.items()}
    (model / "config.json").write_text(json.dumps(raw, indent=2))
    out = round_trip(model, tmp_path, dtype="bfloat16")
    assert json.loads((out / "config.json").read_text()) == raw | {spelling: "bfloat16"}
    before, after = open_checkpoint(str(model)), open_checkpoint(str(out))
    for name, info in after.tensors.items():
        assert info.dtype == "BF16"
        assert after.array(name).tobytes() == before.array(name).astype("bfloat16").tobytes()


def test_values_that_do_not_fit_the_type_are_refused(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model")
    tensors = read(model)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 3] = 1e6
    tensors["model.norm.weight"][0] = np.inf  # was there before: not our doing
    rewrite(model, tensors)
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.up_proj") as error:
        round_trip(model, tmp_path, dtype="float16")
    assert "model.norm.weight" not in str(error.value)
    assert not (tmp_path / "out").exists()


# -------------------------------------------------------------------------------- after training


def training_run(model: Path, workdir: Path, dtype: str) -> dict[int, Any]:
    """The folders of a training run with two steps; returns their parameters."""
    found = describe(str(model))
    (workdir / "checkpoints").mkdir(parents=True)
    write_own(
        workdir, found.folder, found.raw_config, found.naming, None, found.metadata, None,
        found.source, None,
    )  # fmt: skip
    saved = {}
    for step in (5, 10):
        params = load(str(model), dtype=dtype).params
        params = jax.tree.map(lambda w, step=step: w * (1 + step / 100), params)
        path = workdir / "checkpoints" / str(step)
        save_params(path, params)
        from chopjax.checkpoint.manifest import write_manifest

        write_manifest(path)
        saved[step] = params
    (workdir / "checkpoints" / "15.partial").mkdir()
    return saved


@pytest.mark.parametrize("stated", ["bfloat16", "float32", None])
def test_a_training_run_comes_back_in_the_stated_type(tmp_path: Path, stated: str | None) -> None:
    model = write_checkpoint(tmp_path / "model", dtype=torch.bfloat16)
    raw = json.loads((model / "config.json").read_text())
    raw["dtype"] = stated
    (model / "config.json").write_text(json.dumps(raw))
    saved = training_run(model, tmp_path / "run", "float32")
    for step in (None, 5):
        out = tmp_path / f"out{step}"
        export_model(str(tmp_path / "run"), out, step)
        assert (out / "config.json").read_bytes() == (model / "config.json").read_bytes()
        found = load(str(out)).params
        expected = saved[step or 10]
        for path, leaf in flatten_dict(found, sep="/").items():
            assert leaf.dtype == (stated or "float32")
            wanted = flatten_dict(expected, sep="/")[path].astype(leaf.dtype)
            assert np.array_equal(np.asarray(leaf), np.asarray(wanted)), path


def test_step_that_is_not_there(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model")
    training_run(model, tmp_path / "run", "float32")
    with pytest.raises(UserError, match="no checkpoint of step 7; there are 5, 10"):
        describe(str(tmp_path / "run"), step=7)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "checkpoints").mkdir()
    with pytest.raises(UserError, match="not saved a checkpoint yet"):
        describe(str(tmp_path / "run"))


# ----------------------------------------------------------------------------------- transformers


@pytest.mark.parametrize("family", families.SAMPLE)
def test_the_export_gives_the_same_logits_in_transformers(tmp_path: Path, family: str) -> None:
    model = write_checkpoint(tmp_path / "model", family)
    out = round_trip(model, tmp_path, max_shard_bytes=30_000)
    tokens = torch.randint(0, 97, (2, 33), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first, second = (
            transformers.AutoModelForCausalLM.from_pretrained(folder)(tokens).logits
            for folder in (model, out)
        )
    assert torch.equal(first, second)


def test_export_from_memory(tmp_path: Path) -> None:
    """Trained parameters straight from the devices, in a type of their own."""
    model = write_checkpoint(tmp_path / "model", "gpt2", dtype=torch.bfloat16)
    found = load(str(model), dtype="float32")
    export(
        found.config,
        found.raw_config,
        jax.tree.map(lambda w: w * 3, found.params),
        found.folder,
        tmp_path / "out",
        found.naming,
    )
    before, after = open_checkpoint(str(model)), open_checkpoint(str(tmp_path / "out"))
    for name in before.tensors:
        expected = (before.array(name).astype(np.float32) * 3).astype("bfloat16")
        assert after.array(name).tobytes() == expected.tobytes()


def test_parameters_of_another_shape_are_a_defect(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model")
    found = load(str(model))
    wrong = found.config.keep((0, 1, 2))
    with pytest.raises(ValueError, match="shapes"):
        export(wrong, found.raw_config, found.params, found.folder, tmp_path / "o", found.naming)
