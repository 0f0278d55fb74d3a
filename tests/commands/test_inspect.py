"""inspect: right numbers, quickly, and nothing else on standard output."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from checkpoints import write_checkpoint

from chopjax.chop.configurations import choose
from chopjax.chop.surgery import chop_config
from chopjax.cli import main
from chopjax.models import families


def inspect(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    assert main(["inspect", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"tie_word_embeddings": False, "attention_bias": True}),
        ("gpt2", {}),
        ("opt", {"word_embed_proj_dim": 16}),
    ],
)
def test_counts_are_those_of_transformers(
    tmp_path: Path, family: str, options: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_checkpoint(tmp_path / "model", family, torch.bfloat16, "20KB", **options)
    found = inspect(capsys, model)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(model)
    total = sum(p.numel() for p in theirs.parameters())
    layers = next(m for m in theirs.modules() if isinstance(m, torch.nn.ModuleList))
    assert found["parameters"]["total"] == total
    assert found["parameters"]["per_layer"] == sum(p.numel() for p in layers[0].parameters())
    embeddings = {
        id(p): p.numel()
        for name, p in theirs.named_parameters()
        if any(word in name for word in ("embed_tokens", "embed_positions", "wte", "wpe", "head"))
    }
    assert found["parameters"]["embeddings"] == sum(embeddings.values())
    assert found["bytes"] == 2 * total
    assert found["dtype"] == "bfloat16"
    assert found["config"]["num_layers"] == 4
    assert sum(row["bytes"] for row in found["tensors"]) == found["bytes"]
    assert {row["layers"] for row in found["tensors"]} == {None, 4}


def test_tensors_are_those_of_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_checkpoint(tmp_path / "model")
    path = model / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    name = "model.layers.2.mlp.up_proj.weight"
    tensors[name] = tensors[name].astype(np.float16)
    safetensors.numpy.save_file(tensors, path, {"format": "pt"})
    found = inspect(capsys, model)
    rows = {row["name"]: row for row in found["tensors"]}
    row = rows["model.layers.{l}.mlp.up_proj.weight"]
    assert row["dtypes"] == ["F32", "F16"]
    assert row["bytes"] == 56 * 32 * (3 * 4 + 2)
    assert (row["shape"], row["axes"], row["parameters"]) == ([56, 32], "L D F", ["blocks/mlp/up"])
    assert found["bytes"] == sum(tensor.nbytes for tensor in tensors.values())


def test_every_kind_of_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_checkpoint(tmp_path / "model")
    assert main(["import", str(model), str(tmp_path / "import"), "--keep", "0,2-3"]) == 0
    capsys.readouterr()
    whole, kept = inspect(capsys, model), inspect(capsys, tmp_path / "import")
    assert (whole["kind"], kept["kind"]) == ("Hugging Face", "import")
    assert kept["provenance"]["kept_layers"] == [0, 2, 3]
    difference = whole["parameters"]["total"] - kept["parameters"]["total"]
    assert difference == whole["parameters"]["per_layer"]
    assert kept["bytes"] == 4 * kept["parameters"]["total"]


def test_check_names_nan_in_both_kinds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_checkpoint(tmp_path / "model")
    assert inspect(capsys, model, "--check")["not_finite"] == []
    path = model / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    tensors["model.layers.2.mlp.up_proj.weight"][-1, -1] = np.inf
    safetensors.numpy.save_file(tensors, path, {"format": "pt"})
    assert main(["import", str(model), str(tmp_path / "import")]) == 0
    capsys.readouterr()
    found = inspect(capsys, model, "--check")
    assert found["not_finite"] == ["model.layers.2.mlp.up_proj.weight"]
    found = inspect(capsys, tmp_path / "import", "--check")
    assert found["not_finite"] == ["blocks/mlp/up"]
    assert main(["inspect", str(model), "--check"]) == 0
    assert "NaN or infinity: model.layers.2.mlp.up_proj.weight" in capsys.readouterr().out


def test_tables_cut_nothing(mix_llama: Path) -> None:
    """Piped output is wide enough for every name and number."""
    command = [sys.executable, "-m", "chopjax.cli", "inspect", str(mix_llama)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "…" not in out
    for text in (
        "model.layers.{l}.post_attention_layernorm.weight",
        "blocks/attention/output, L N H D",
        "3,884,960",
        "15.54 MB",
        "12·L·heads·head_dim·T",
    ):
        assert text in out


@pytest.mark.parametrize("named", ["{folder}", "{folder}/config.json"])
@pytest.mark.parametrize(("family", "options"), [("llama", {}), ("gpt2", {}), ("opt", {})])
def test_config_json_alone_tells_the_same(
    tmp_path: Path, family: str, options: dict, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_checkpoint(tmp_path / "model", family, torch.bfloat16, "20KB", **options)
    whole = inspect(capsys, model)
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "config.json").write_bytes((model / "config.json").read_bytes())
    named = named.format(folder=alone)
    told = inspect(capsys, named)
    assert (told["weights"], whole["weights"]) == (False, True)
    assert told["no_weights"].startswith("none are there")
    for key in ("parameters", "bytes", "bytes_by_dtype", "flops_per_token", "training_memory"):
        assert told[key] == whole[key]
    assert told["bytes_by_dtype"]["float32"] == 4 * told["parameters"]["total"]
    assert main(["inspect", named]) == 0
    assert "none are there" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (
            {"model_type": "gemma3_text", "num_hidden_layers": 7, "sliding_window_pattern": 3},
            ["7: 5 with a window of 4,096, 2 full (2,5)", "base 10,000; RoPE of base 1,000,000"],
        ),
        ({"model_type": "smollm3"}, ["36 ", "RoPE of base 2,000,000; none in 9 layers"]),
        ({"model_type": "phi"}, ["RoPE of base 10,000, on 32 of a head's 64"]),
        ({"model_type": "mistral"}, ["32: 32 with a window of 4,096"]),
        ({"model_type": "mpt"}, ["2,048, ALiBi"]),
        ({"model_type": "opt"}, ["2,048, learned"]),
        (
            {"model_type": "llama", "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
            ["RoPE of base 10,000, linear x4"],
        ),
    ],
    ids=str,
)
def test_how_tokens_know_where_they_stand(
    tmp_path: Path, raw: dict, told: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert main(["inspect", str(tmp_path / "config.json")]) == 0
    shown = capsys.readouterr().out
    assert [text for text in told if text not in shown] == []


@pytest.mark.parametrize("name", ["pytorch_model.bin", "a.safetensors", "model.gguf"])
def test_other_weights_are_not_taken_for_none(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_checkpoint(tmp_path / "model")
    (model / "model.safetensors").rename(model / name)
    assert main(["inspect", str(model)]) == 2
    capsys.readouterr()
    assert inspect(capsys, model / "config.json")["no_weights"].startswith("not looked at; give")


def test_quick_and_without_heavy_imports(mix_llama: Path) -> None:
    code = (
        "import sys, time; from chopjax.cli import main; "
        f"assert main(['inspect', {str(mix_llama)!r}, '--json']) == 0; "
        "heavy = {'jax', 'transformers', 'torch', 'flax', 'orbax'} & set(sys.modules); "
        "assert not heavy, heavy; print(time.process_time(), file=sys.stderr)"
    )
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.monotonic() - begun < 30
    assert float(done.stderr.split()[-1]) < 1.0  # seconds of the processor; others share it here
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{model}x",), "no such folder"),
        (("{model}", "--sequence-length", "0"), "--sequence-length"),
        (("{model}", "--step", "1"), "--step"),
        (("{model}/model.safetensors",), "give the folder"),
        (("{model}/config.json", "--check"), "--check: "),
    ],
)
def test_mistakes(
    mix_llama: Path,
    arguments: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["inspect", *(a.format(model=mix_llama) for a in arguments)]) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert output.out == ""


@pytest.mark.parametrize(
    ("raw", "whole", "first"),
    [
        (
            {"model_type": "gpt2", "n_embd": 1600, "n_layer": 48, "n_head": 25, "n_positions": 1024}
            | {"vocab_size": 50257},
            1557,
            112,
        ),
        (
            {"model_type": "opt", "hidden_size": 2048, "num_hidden_layers": 24, "ffn_dim": 8192}
            | {"num_attention_heads": 32, "vocab_size": 50272, "max_position_embeddings": 2048},
            1315,
            157,
        ),
    ],
    ids=["GPT-2 XL", "OPT-1.3B"],
)
def test_the_first_layer_of_why_lift_so_heavys_models(
    raw: dict, whole: int, first: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Millions of parameters that the paper says are left (arXiv 2402.11700)."""
    family, config = families.translate(raw)
    chopped = chop_config(raw, family, choose("first", config.num_layers, config.num_layers - 1))
    for name, content, millions in (("whole", raw, whole), ("first", chopped, first)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        found = inspect(capsys, tmp_path / f"{name}.json")
        assert found["parameters"]["total"] // 10**6 == millions
