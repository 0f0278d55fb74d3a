"""Whole checkpoints quantized: beside plain numpy, in transformers, chopped before and after."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import torch
import transformers
from quantize.decoded import dense_of, unpacked
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from chopjax.cli import main
from chopjax.models.formats import Kind
from chopjax.quantize.quantize import quantize_checkpoint

LARGEST = {"int4": 7, "int8": 127, "fp8": 448}
GROUP: dict[str, int | None] = {"int4": 32, "int8": None, "fp8": None}


def make_parent(folder: Path, family: str = "llama", **options: Any) -> Path:
    sizes = {"vocab_size": 97, "hidden_size": 64, "num_hidden_layers": 3} | options
    if family == "llama":
        sizes["intermediate_size"] = 96
    checkpoints.write_checkpoint(folder, family, **sizes)
    return checkpoints.write_tokenizer(folder)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_parent(tmp_path_factory.mktemp("quantize") / "parent", dtype=torch.bfloat16)


@pytest.fixture(scope="module", params=LARGEST)
def quantized(
    request: pytest.FixtureRequest, parent: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Kind, Path]:
    out = tmp_path_factory.mktemp("quantized") / request.param
    done = quantize_checkpoint(str(parent), out, request.param)
    assert done["group"] == GROUP[request.param]
    return request.param, out


def is_matrix(name: str) -> bool:
    return name.endswith("_proj.weight")


def plain_codes(weight: torch.Tensor, kind: Kind) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes as float32, scales) of a bfloat16 matrix, by definition."""
    rows = weight.float().reshape(len(weight), -1, GROUP[kind] or weight.shape[1])
    scales = (rows.abs().amax(-1) / LARGEST[kind]).bfloat16()
    scaled = (rows / scales.float()[..., None]).clamp(-LARGEST[kind], LARGEST[kind])
    codes = scaled.to(torch.float8_e4m3fn).float() if kind == "fp8" else scaled.round()
    return codes.reshape(weight.shape), scales


def logits(folder: Path) -> torch.Tensor:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor([[3, 5, 8, 13, 21]])).logits
    return found


def test_codes_and_scales_are_those_of_the_definition(
    quantized: tuple[Kind, Path], parent: Path
) -> None:
    kind, out = quantized
    before, found = load_file(parent / "model.safetensors"), load_file(out / "model.safetensors")
    for name, weight in before.items():
        if not is_matrix(name):
            assert torch.equal(found.pop(name), weight), name
            continue
        codes, scales = plain_codes(weight, kind)
        assert torch.equal(found.pop(f"{name}_scale"), scales), name
        if kind == "fp8":
            made = found.pop(name)
            assert made.dtype == torch.float8_e4m3fn
        else:
            assert found.pop(f"{name}_shape").tolist() == list(weight.shape)
            made = unpacked(found.pop(f"{name}_packed"), 4 if kind == "int4" else 8)
        assert torch.equal(made.float(), codes), name
    assert not found


def test_transformers_computes_with_it(
    quantized: tuple[Kind, Path], parent: Path, tmp_path: Path
) -> None:
    pytest.importorskip("compressed_tensors")
    found = logits(quantized[1])
    assert torch.equal(found, logits(dense_of(quantized[1], tmp_path / "dense")))
    assert not torch.equal(found, logits(parent)), "nothing was quantized"


@pytest.mark.parametrize("family", ["gpt_neox", "opt", "phi3", "bloom", "gemma3_text"])
def test_families_whose_modules_have_other_names(family: str, tmp_path: Path) -> None:
    """Of the head, too, and with several kernels in a tensor."""
    pytest.importorskip("compressed_tensors")
    checkpoints.write_checkpoint(tmp_path / "m", family)
    quantize_checkpoint(str(tmp_path / "m"), tmp_path / "out", "int8")
    dense = dense_of(tmp_path / "out", tmp_path / "dense")
    assert torch.equal(logits(tmp_path / "out"), logits(dense))


def test_a_chop_before_and_after(
    quantized: tuple[Kind, Path], parent: Path, tmp_path: Path
) -> None:
    kind, out = quantized
    chopped, both = tmp_path / "chopped", tmp_path / "both"
    assert main(["chop", str(parent), str(chopped), "--keep", "0,2"]) == 0
    quantize_checkpoint(str(chopped), both, kind)
    assert main(["chop", str(out), str(tmp_path / "other"), "--keep", "0,2"]) == 0
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (both / name).read_bytes() == (tmp_path / "other" / name).read_bytes(), name
    steps = [entry["step"] for entry in json.loads((both / "chopjax.json").read_text())["history"]]
    assert steps == ["chop", "quantization"]


def test_what_is_recorded(parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["quantize", str(parent), str(tmp_path / "out"), "--weights", "int4", "--group", "16"]
    assert main(words) == 0
    assert "int4 (pack-quantized), a scale for 16 inputs" in capsys.readouterr().out
    (entry,) = json.loads((tmp_path / "out" / "chopjax.json").read_text())["history"]
    numbers = 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96)
    assert entry == {
        "step": "quantization", "weights": "int4", "group": 16, "method": "nearest",
        "format": "pack-quantized", "matrices": 21, "numbers": numbers,
    }  # fmt: skip
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"int4, a scale for 16 inputs of an output, nearest: {numbers:,} weights" in card
    assert main(["inspect", str(tmp_path / "out")]) == 0
    assert "with the numbers that its codes stand for" in capsys.readouterr().out
    assert main(["chop", str(tmp_path / "out"), str(tmp_path / "chop"), "--keep", "0"]) == 0
    said = capsys.readouterr().err
    assert "the weights are quantized, as `chopjax quantize` does it, and stay so" in said
    assert main(words) == 2, "it is there already"
    assert main([*words, "--overwrite", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    with safe_open(tmp_path / "out" / "model.safetensors", "np") as file:
        names = list(file.keys())
    assert done["bytes"]["after"] < done["bytes"]["before"]
    assert sum(name.endswith("weight_packed") for name in names) == done["matrices"]


@pytest.mark.parametrize(
    ("family", "flags", "message"),
    [
        ("gpt2", ["--weights", "int8"], "gpt2 has [in, out] (Conv1D):\n  transformer.h.0.attn"),
        ("olmoe", ["--weights", "fp8"], "holds the experts of olmoe in arrays with three axes"),
        ("falcon", ["--weights", "fp8"], "multiply with their weight themselves"),
        ("llama", ["--weights", "int4", "--group", "64"], "mlp.down_proj.weight has 96 inputs"),
        ("llama", ["--weights", "int4", "--group", "64"], "Take --group 32, or int8 or fp8"),
        ("llama", ["--weights", "int4", "--group", "48"], "it is one of 128, 64, 32, 16"),
        ("llama", ["--weights", "int8", "--group", "64"], "--group 64: with --weights int8"),
    ],
)
def test_what_is_refused(
    family: str,
    flags: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    llama: dict[str, Any] = {"intermediate_size": 96, "hidden_size": 64}
    sizes = llama if family == "llama" else {}
    checkpoints.write_checkpoint(tmp_path / "m", family, **sizes)
    assert main(["quantize", str(tmp_path / "m"), str(tmp_path / "out"), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_row_of_codes_fills_whole_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = checkpoints.write_checkpoint(tmp_path / "m", hidden_size=64, intermediate_size=50)
    assert main(["quantize", str(model), str(tmp_path / "out"), "--weights", "int8"]) == 2
    assert "model.layers.0.mlp.down_proj.weight has 50 inputs" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["quantize", str(model), str(tmp_path / "out"), "--weights", "fp8"]) == 0


def test_what_is_quantized_already_and_what_is_not_finite(
    quantized: tuple[Kind, Path], parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, out = quantized
    assert main(["quantize", str(out), str(tmp_path / "again"), "--weights", "int8"]) == 2
    assert f"{out}: its weights are in {kind} already" in capsys.readouterr().err
    tensors = load_file(parent / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][3, 4] = float("nan")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_bytes((parent / "config.json").read_bytes())
    save_file(tensors, damaged / "model.safetensors", {"format": "pt"})
    assert main(["quantize", str(damaged), str(tmp_path / "again"), "--weights", kind]) == 2
    assert f"{name} holds NaN or infinity" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"], "nothing is left behind"
