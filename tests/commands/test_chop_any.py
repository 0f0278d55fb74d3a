"""Models that chopjax chops and does not compute with, as a stranger meets them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from chop_models import write_model

from chopjax import cli
from chopjax.checkpoint.safetensors_file import read_header
from chopjax.checkpoint.writer import Tensor, write_safetensors


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in ("gemma3_text", "phimoe", "llava", "llama", "jamba"):
        write_model(folder / name, name)
    write_model(folder / "gemma13", "gemma3_text", num_hidden_layers=13)
    change(folder / "llama", folder / "unknown", model_type="supermodel")
    change(folder / "llama", folder / "unclear", model_type="supermodel", attn_every=3)
    change(folder / "phimoe", folder / "refused", model_type="minicpm3")
    return folder


def change(model: Path, out: Path, **fields: Any) -> None:
    """A copy whose config.json says something else."""
    shutil.copytree(model, out)
    raw = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(raw | fields))


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = cli.main([str(word) for word in words])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_chop_chop_again_and_look(models, tmp_path, capsys):
    code, out, err = run(
        capsys, "chop", models / "phimoe", tmp_path / "a", "--strategy", "middle", "--remove", 2
    )
    assert code == 0
    assert "elements" in out
    assert "not train or score it: it is a mixture of experts" in err
    code, out, _ = run(capsys, "chop", tmp_path / "a", tmp_path / "b", "--keep", "0,4", "--json")
    assert code == 0
    result = json.loads(out)
    assert result["before"]["parameters"] is None
    assert result["after"]["layers"] == 2
    assert "mixture of experts" in result["notes"][0]
    record = json.loads((tmp_path / "b" / "chopjax.json").read_text())
    assert record["kept_layers"] == [0, 6]
    assert "with 2 of its 7 layers" in (tmp_path / "b" / "README.md").read_text()
    code, out, _ = run(capsys, "inspect", tmp_path / "b", "--json")
    found = json.loads(out)
    assert (found["depth"], found["num_layers"], found["quantization"]) == ("chop", 2, None)
    assert found["bytes"] == sum(t["bytes"] for t in found["tensors"])
    code, out, _ = run(capsys, "inspect", tmp_path / "b")
    assert code == 0
    assert "model.layers.{l}.block_sparse_moe.experts.{n}" in out or "{l}" in out
    assert "layers 0,6" in out


@pytest.mark.parametrize(
    ("model", "flags", "complaint"),
    [
        ("phimoe", "--strategy similarity --remove 2 --data x", "does not compute with"),
        ("phimoe", "--strategy sleb --remove 2 --analysis x", "Strategies by name do without"),
        ("phimoe", "--keep 0,9", "no layer 9"),
        ("phimoe", "--strategy first --remove 2 --period whole", "has no period: all its layers"),
        ("gemma13", "--strategy first --remove 5 --period whole", "--remove 6 would be"),
        ("gemma13", "--keep 0,2-12 --period whole", "comes to a place of another kind"),
        ("llama", "--strategy sleb --remove 2 --data x --period whole", "looks at single layers"),
        ("unclear", "--keep 0", "attn_every = 3"),
        ("refused", "--keep 0", "scale_depth"),
        ("jamba", "--keep 0,1,3", "would be 1-2, which no period gives"),
        ("gemma13", "--strategy output --remove 6 --period whole", "has 2 whole periods of 6"),
        ("llama", "--strategy average --remove 6 --data x", "it can remove 1 to"),
    ],
)
def test_mistakes(models, tmp_path, capsys, model, flags, complaint):
    code, _, err = run(capsys, "chop", models / model, tmp_path / "out", *flags.split())
    assert code == 2, err
    assert complaint in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("model", ["llama", "phimoe"])
def test_a_file_beside_says_how_weights_are_quantized(models, tmp_path, capsys, model):
    shutil.copytree(models / model, tmp_path / "in")
    quantization = {"exclude_modules": ["lm_head", "model.layers.0.mlp", "model.layers.2.mlp"]}
    said = {"producer": {"name": "modelopt"}, "quantization": quantization}
    (tmp_path / "in" / "hf_quant_config.json").write_text(json.dumps(said))
    code, _, err = run(capsys, "chop", tmp_path / "in", tmp_path / "out", "--keep", "1-2")
    assert code == 0, err
    followed = json.loads((tmp_path / "out" / "hf_quant_config.json").read_text())
    assert followed["quantization"]["exclude_modules"] == ["lm_head", "model.layers.1.mlp"]
    assert followed["producer"] == said["producer"]


def test_whole_periods(models, tmp_path, capsys):
    words = ("--strategy", "first", "--remove", 6, "--period", "whole", "--json")
    code, out, _ = run(capsys, "chop", models / "gemma13", tmp_path / "out", *words)
    assert code == 0
    result = json.loads(out)
    assert result["kept_layers"] == [0, 1, 2, 3, 4, 5, 12]
    assert result["settings"] == {"remove": 6, "period": "whole"}
    assert not any("llama.cpp" in note for note in result["notes"])


def test_a_broken_rhythm_is_said_on_the_card(models, tmp_path, capsys):
    code, _, err = run(capsys, "chop", models / "gemma13", tmp_path / "out", "--keep", "0,5,6")
    assert code == 0
    assert "no longer in the rhythm of the family" in err
    assert "misreads this model" in (tmp_path / "out" / "README.md").read_text()


def test_the_card_of_a_model_with_a_tower(models, tmp_path, capsys):
    (tmp_path / "llava").mkdir()
    shutil.copytree(models / "llava", tmp_path / "llava", dirs_exist_ok=True)
    (tmp_path / "llava" / "preprocessor_config.json").write_text("{}")
    assert run(capsys, "chop", tmp_path / "llava", tmp_path / "out", "--keep", "0,5,6")[0] == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "AutoModelForImageTextToText" in card
    assert "pipeline_tag: image-text-to-text" in card
    assert (tmp_path / "out" / "preprocessor_config.json").is_file()


def test_an_unknown_model_type_says_what_was_inferred(models, tmp_path, capsys):
    code, _, err = run(capsys, "chop", models / "unknown", tmp_path / "out", "--keep", "0,5,6")
    assert code == 0
    assert "Inferred: 7 layers, tensors model.layers.0.… to model.layers.6.…" in err


@pytest.mark.parametrize(
    "words",
    [
        "import {model} {out}",
        "perplexity {model} --data {config}",
        "export {model} {out}",
        "inspect {config}",
    ],
)
def test_other_verbs_say_that_it_can_be_chopped(models, tmp_path, capsys, words):
    model = models / "phimoe"
    places = {"model": model, "out": tmp_path / "out", "config": model / "config.json"}
    code, _, err = run(capsys, *(word.format(**places) for word in words.split()))
    assert code == 2
    assert "chopjax can remove its layers (chopjax chop MODEL OUT …)" in err
    assert "because it is a mixture of experts" in err


def test_quantized_tensors_of_every_type(models, tmp_path, capsys):
    """FP8 weights, packed integers and scales go or stay with their layer, byte for byte."""
    held = safetensors.numpy.load_file(models / "llama" / "model.safetensors")
    rows = []
    types = {"weight": ml_dtypes.float8_e4m3fn, "scale": ml_dtypes.float8_e8m0fnu}
    names = {"weight": "F8_E4M3", "scale": "F8_E8M0", "qweight": "I32", "absmax": "U8"}
    for name, array in held.items():
        if "_proj" not in name:
            rows.append(Tensor(name, "F32", array.shape, array))
            continue
        for part, dtype in (types | {"qweight": np.int32, "absmax": np.uint8}).items():
            value = np.full((2, 3), int(name.split(".")[2])).astype(dtype)
            rows.append(Tensor(name.replace("weight", part), names[part], (2, 3), value))
    raw = json.loads((models / "llama" / "config.json").read_text())
    raw["quantization_config"] = {
        "quant_method": "fp8",
        "modules_to_not_convert": ["lm_head", "model.layers.2.mlp", "model.layers.5.mlp"],
    }
    folder = tmp_path / "fp8"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(raw))
    write_safetensors(folder, rows, 4000)
    code, _, err = run(capsys, "chop", folder, tmp_path / "out", "--keep", "1,5")
    assert code == 0
    assert "quantized" in err
    header = read_header(tmp_path / "out" / "model.safetensors")
    for part in names:
        tensor = header[f"model.layers.1.mlp.up_proj.{part}"]
        assert tensor.dtype == names[part]
        assert (tensor.read().astype(np.float32) == (4.0 if part == "scale" else 5.0)).all()
    chopped = json.loads((tmp_path / "out" / "config.json").read_text())
    ignored = chopped["quantization_config"]["modules_to_not_convert"]
    assert ignored == ["lm_head", "model.layers.1.mlp"]
    found = json.loads(run(capsys, "inspect", tmp_path / "out", "--json")[1])
    assert found["quantization"] == "fp8"


def test_families(capsys):
    code, out, _ = run(capsys, "inspect", "--families", "--json")
    assert code == 0
    found = {row["model_type"]: row for row in json.loads(out)["families"]}
    assert found["llama"]["depth"] == "compute"
    assert "attention_bias" in found["llama"]["options"]
    assert found["phimoe"]["depth"] == "chop"
    assert found["gemma3"]["inside"] == "text_config"
    code, out, _ = run(capsys, "inspect", "--families")
    assert code == 0
    assert "no_rope_layers: sliced; missing" in out
    for words in (["x"], ["--check"], ["--step", "3"]):
        assert run(capsys, "inspect", "--families", *words)[0] == 2
    assert run(capsys, "inspect")[0] == 2
