"""Runs with adapters, exported: merged, and as the folder that peft loads."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import families
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from checkpoints import write_checkpoint, write_tokenizer
from safetensors.numpy import load_file
from train.runs import prepare, recipe

from chopjax import cli
from chopjax.checkpoint.describe import describe
from chopjax.checkpoint.export import export_model
from chopjax.checkpoint.load import load
from chopjax.checkpoint.peft_folder import _modules, export_adapter
from chopjax.errors import UserError
from chopjax.models import adapter_settings, decoder, parameters
from chopjax.models.adapter_settings import AdapterSettings
from chopjax.models.compute import Compute
from chopjax.models.families import FAMILIES, translate
from chopjax.models.families.table import bind, usual_naming
from chopjax.models.head import head_of, logits
from chopjax.train.loop import train

RANK = 3


@pytest.mark.parametrize("name", FAMILIES)
def test_b_times_a_is_what_merging_adds(name: str) -> None:
    """Of every family, by its weight table: module by module, fused ones and GPT-2's included."""
    family, config = translate(families.draw(name, 0) | {"model_type": name})
    targets = "attention" if config.experts else "all"
    settings = AdapterSettings(rank=RANK, targets=targets)
    random = np.random.default_rng(0)
    shapes = adapter_settings.shapes(config, settings)
    adapters = {path: random.normal(size=shape).astype("f4") for path, shape in shapes.items()}
    description = type("D", (), {"family": family, "config": config})
    modules = _modules(description, adapters)  # type: ignore[arg-type]
    sizes = parameters.sizes(config)
    seen = set()
    for binding in bind(family, config, usual_naming(family)):
        paths = [path for path in binding.row.targets if f"{path}/a" in adapters]
        if not paths:
            continue
        assert len(paths) == len(binding.row.targets)
        layer = binding.layer
        both = [(adapters[f"{path}/a"][layer], adapters[f"{path}/b"][layer]) for path in paths]
        parts = [np.tensordot(a, b, 1) for a, b in both]
        want = binding.row.to_tensor(parts, sizes)
        _, a, b = modules[binding.source.removesuffix(".weight")]
        assert a.shape[0] == b.shape[1] == RANK * len(paths)
        got = b @ a
        got = got if want.shape == got.shape and name != "gpt2" else got.T
        np.testing.assert_allclose(got, want, atol=1e-5, err_msg=binding.source)
        seen.add(binding.source.removesuffix(".weight"))
    assert seen == modules.keys()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("data"))


RUNS = {
    # A chop of Llama after some steps; a whole GPT-2; a fused family on a quantized base.
    "llama": ("adapter.targets=gate,down,query,value", "chop.keep=0,2-3", "chop.after_steps=1"),
    "gpt2": ("adapter.targets=all", "adapter.alpha=6"),
    "phi3": ("adapter.targets=all", "adapter.base=nf4", "chop.keep=0,3"),
}


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Workdirs of short runs; their models lie in data/FAMILY."""
    workdirs = {}
    for family, overrides in RUNS.items():
        own = {} if family == "llama" else families.draw(family, 0) | {"vocab_size": 97}
        layers = "n_layer" if family == "gpt2" else "num_hidden_layers"
        if family != "llama":
            write_checkpoint(data / family, family, torch.bfloat16, **own | {layers: 4})
            write_tokenizer(data / family)
        name = "model" if family == "llama" else family
        workdir = tmp_path_factory.mktemp(family)
        config = recipe(data, f"adapter.rank={RANK}", "total_steps=3", *overrides)
        config.model = str(data / name)
        config.optimizer.peak_learning_rate = 0.05
        train(config, workdir)
        workdirs[family] = workdir
    return workdirs


def ours(model: str, tokens_BT: np.ndarray) -> np.ndarray:
    loaded = load(model, dtype="float32")
    hidden = decoder.hidden_states(loaded.params, loaded.config, Compute(), jnp.asarray(tokens_BT))
    return np.asarray(logits(head_of(loaded.params, loaded.config), hidden))


TOKENS = np.random.default_rng(1).integers(0, 97, (2, 16), dtype=np.int32)


@pytest.mark.parametrize("family", RUNS)
def test_merged_and_loaded_by_peft(
    runs: dict[str, Path], family: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """The run's own logits, those of the merged checkpoint and those of peft; what was not trained
    is byte for byte the base's."""
    want = ours(str(runs[family]), TOKENS)
    merged = tmp_path / "merged"
    export_model(str(runs[family]), merged, dtype="float32")
    model = transformers.AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    got = model(torch.tensor(TOKENS).long()).logits.detach().numpy()
    np.testing.assert_allclose(got, want, atol=1e-4)

    out = tmp_path / "adapter"
    export_adapter(str(runs[family]), out)
    config = json.loads((out / "adapter_config.json").read_text())
    base = config["base_model_name_or_path"]
    assert Path(base).is_dir()
    on_base = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    plain = on_base(torch.tensor(TOKENS).long()).logits.detach().numpy()
    adapted = peft.PeftModel.from_pretrained(on_base, out)
    assert not [w for w in recwarn if "adapter keys" in str(w.message)]
    theirs = adapted(torch.tensor(TOKENS).long()).logits.detach().numpy()
    assert np.abs(theirs - plain).max() > 1e-3
    if "adapter.base=nf4" not in RUNS[family]:  # peft's stands on the base's own weights
        np.testing.assert_allclose(theirs, want, atol=1e-4)
        by_peft = adapted.merge_and_unload().state_dict()
        for name, tensor in load_file(merged / "model.safetensors").items():
            np.testing.assert_allclose(tensor, by_peft[name].numpy(), atol=1e-6, err_msg=name)
    else:
        original = tmp_path / "original"
        export_model(str(runs[family]), original, dtype="float32", onto="original")
        np.testing.assert_allclose(ours(str(original), TOKENS), theirs, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "phi3"])
def test_what_is_not_trained_is_byte_for_byte_the_base_s(
    runs: dict[str, Path], data: Path, family: str, tmp_path: Path
) -> None:
    export_model(str(runs[family]), tmp_path / "out")
    keep = describe(str(runs[family])).weights.keep or range(4)  # type: ignore[union-attr]
    # As bytes: numpy has no bfloat16.
    before = raw_tensors(data / family / "model.safetensors")
    after = raw_tensors(tmp_path / "out" / "model.safetensors")
    number = {f".{old}.": f".{new}." for new, old in enumerate(keep)}
    renamed = {}
    for name, value in before.items():
        layer = next((part for part in name.split(".") if part.isdigit()), None)
        if layer is None:
            renamed[name] = value
        elif int(layer) in keep:
            renamed[name.replace(f".{layer}.", number[f".{layer}."], 1)] = value
    assert renamed.keys() == after.keys()
    same = {name for name in after if after[name] == renamed[name]}
    matrices = {name for name in after if name.endswith("weight") and _is_matrix(name)}
    assert after.keys() - same == matrices


def raw_tensors(path: Path) -> dict[str, bytes]:
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    header.pop("__metadata__", None)
    return {
        name: raw[8 + size + about["data_offsets"][0] : 8 + size + about["data_offsets"][1]]
        for name, about in header.items()
    }


def _is_matrix(name: str) -> bool:
    stems = ("c_attn", "c_proj", "c_fc", "qkv_proj", "o_proj", "gate_up_proj", "down_proj")
    return any(f".{stem}." in name for stem in stems)


def test_another_base_is_refused(runs: dict[str, Path], data: Path, tmp_path: Path) -> None:
    """Weights that changed under the adapters: every way in says so."""
    path = data / "gpt2" / "model.safetensors"
    before = path.read_bytes()
    try:
        path.write_bytes(before[:-64] + os.urandom(64))
        for act in (
            lambda: export_model(str(runs["gpt2"]), tmp_path / "out"),
            lambda: export_adapter(str(runs["gpt2"]), tmp_path / "out"),
            lambda: load(str(runs["gpt2"])),
        ):
            with pytest.raises(UserError, match="not what the adapters in"):
                act()
        assert not (tmp_path / "out").exists()
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("missing", ["kept_layers", "base", "origin", "config"])
def test_a_damaged_record_is_named(runs: dict[str, Path], tmp_path: Path, missing: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs["llama"], run)
    path = run / "checkpoints" / "3" / "run.json"
    record = json.loads(path.read_text())
    del record[missing]
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"run\.json: not a record that chopjax wrote"):
        describe(str(run))


def test_a_base_that_is_gone_is_named(runs: dict[str, Path], data: Path) -> None:
    (data / "gpt2").rename(data / "elsewhere")
    try:
        with pytest.raises(UserError, match="what they stand on cannot be opened"):
            describe(str(runs["gpt2"]))
    finally:
        (data / "elsewhere").rename(data / "gpt2")


def test_wrong_uses(
    runs: dict[str, Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*arguments: str) -> str:
        assert cli.main(["export", *arguments]) == 2
        return capsys.readouterr().err

    run, out = str(runs["gpt2"]), str(tmp_path / "out")
    assert "no --dtype, no --onto" in said(run, out, "--adapter", "--onto", "original")
    own = tmp_path / "full"
    train(recipe(data, "total_steps=2"), own)
    assert "--adapter is for training runs with adapters" in said(str(own), out, "--adapter")
    assert "--onto is for training runs with adapters" in said(str(own), out, "--onto", "original")
    assert not Path(out).exists()
