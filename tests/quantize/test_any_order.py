"""What chopjax quantize wrote, pruned, narrowed, trained, quantized again: beside the same done to
the numbers that its codes stand for, written by plain torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import checkpoints
import numpy as np
import pytest
import torch
import transformers
from quantize.decoded import dense_of
from safetensors.torch import load_file
from train.runs import bits, prepare, recipe

from chopjax.cli import main
from chopjax.models.formats import Kind
from chopjax.quantize.quantize import quantize_checkpoint
from chopjax.train.loop import train

WEIGHTS = ("model.safetensors", "config.json")
KINDS = ["int4", "int8", "fp8"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module", params=KINDS)
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Kind, Path, Path]:
    """The format, the quantized folder, and the numbers of its codes in a folder of torch's."""
    folder = tmp_path_factory.mktemp("any")
    checkpoints.write_checkpoint(
        folder / "parent", dtype=torch.bfloat16, vocab_size=300, num_attention_heads=4,
        hidden_size=64, intermediate_size=96, num_hidden_layers=4, head_dim=16,
    )  # fmt: skip
    checkpoints.write_tokenizer(folder / "parent", 300)
    quantize_checkpoint(str(folder / "parent"), folder / "codes", request.param)
    return request.param, folder / "codes", numbers_of(folder / "codes")


def numbers_of(codes: Path) -> Path:
    folder = dense_of(codes, codes.with_name("numbers"))
    for path in codes.glob("token*"):
        shutil.copy(path, folder)
    return folder


def history(folder: Path) -> list[str]:
    record = json.loads((folder / "chopjax.json").read_text())
    return [entry["step"] for entry in record["history"]]


def check_same(made: Path, expected: Path) -> None:
    """Weights and config.json, byte for byte or by what they say."""
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (made, expected))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name
    configs = [json.loads((folder / "config.json").read_text()) for folder in (made, expected)]
    assert configs[0] == configs[1]
    assert "quantization_config" not in configs[0]


def check_logits(made: Path, expected: Path) -> None:
    ids = torch.tensor([[3, 5, 8, 13, 21]])
    with torch.no_grad():
        ours, theirs = (
            transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")(ids).logits
            for folder in (made, expected)
        )
    assert torch.equal(ours, theirs)


def flags_of(verb: str, text: Path) -> list[str]:
    look = ["--data", str(text), "--sequences", "6", "--sequence-length", "16"]
    return {
        "magnitude": ["sparsify", "--method", "magnitude", "--pattern", "2:4"],
        "wanda": ["sparsify", "--method", "wanda", "--pattern", "0.5", *look],
        "sparsegpt": ["sparsify", "--method", "sparsegpt", "--pattern", "2:4", *look],
        "activation": ["narrow", "--method", "activation", "--mlp", "0.4", "--heads", "0.5", *look],
        "gradient": ["narrow", "--method", "gradient", "--embed", "0.25", *look],
    }[verb]


@pytest.mark.parametrize("verb", ["magnitude", "wanda", "sparsegpt", "activation", "gradient"])
def test_as_of_the_numbers(
    verb: str,
    both: tuple[Kind, Path, Path],
    text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kind, codes, numbers = both
    name, *flags = flags_of(verb, text)
    made, expected = tmp_path / "made", tmp_path / "expected"
    assert main([name, str(codes), str(made), *flags]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert f"{codes} has its weights in {kind}: they are read as the numbers" in said
    assert f"is in floating point. `chopjax quantize --weights {kind}` quantizes that again" in said
    assert main([name, str(numbers), str(expected), *flags]) == 0
    assert "quantizes that again" not in capsys.readouterr().err
    check_same(made, expected)
    check_logits(made, expected)
    step = {"sparsify": "sparsity", "narrow": "width"}[name]
    assert history(made) == ["quantization", "dequantization", step]
    card = (made / "README.md").read_text()
    rows = [line.split("|")[1].strip() for line in card.splitlines() if line.startswith("| ")]
    order = [rows.index(row) for row in ("quantization", "floating point", step)]
    assert order == sorted(order)
    assert f"`chopjax quantize FOLDER OUT --weights {kind}` quantizes them again" in card
    assert "compressed-tensors" not in card


def test_quantized_again_chopped_and_scored(
    both: tuple[Kind, Path, Path], text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, codes, _ = both
    sparse, again, halved = (tmp_path / name for name in ("sparse", "again", "halved"))
    assert main(["sparsify", str(codes), str(sparse), *flags_of("magnitude", text)[1:]]) == 0
    assert main(["quantize", str(sparse), str(again), "--weights", kind]) == 0
    assert main(["chop", str(again), str(halved), "--keep", "0,2"]) == 0
    steps = ["quantization", "dequantization", "sparsity", "quantization", "chop"]
    assert history(halved) == steps
    card = (halved / "README.md").read_text()
    assert "- compressed-tensors\n" in card
    assert "quantizes them again" not in card
    assert card.count("a chop since then took some of these weights") == 3
    capsys.readouterr()
    perplexity = ["--data", str(text), "--json"]
    dense = dense_of(halved, tmp_path / "dense")
    shutil.copy(halved / "tokenizer.json", dense)
    shutil.copy(halved / "tokenizer_config.json", dense)
    found = []
    for folder in (halved, dense):
        assert main(["perplexity", str(folder), *perplexity]) == 0
        found.append(json.loads(capsys.readouterr().out)["nats_per_token"])
    # The scorer has the products of codes and scales in float32, the files in bfloat16.
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_shards_and_their_index(both: tuple[Kind, Path, Path], tmp_path: Path) -> None:
    flags = ["--method", "magnitude", "--pattern", "2:4", "--max-shard-size", "100KB"]
    assert main(["sparsify", str(both[1]), str(tmp_path / "out"), *flags]) == 0
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    shards = {name: load_file(tmp_path / "out" / name) for name in index["weight_map"].values()}
    tensors = {name: shards[shard][name] for name, shard in index["weight_map"].items()}
    assert tensors.keys() == load_file(both[2] / "model.safetensors").keys()
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())


@pytest.mark.parametrize("strategy", ["block-influence", "average"])
def test_a_chop_that_measures(
    strategy: str, both: tuple[Kind, Path, Path], text: Path, tmp_path: Path
) -> None:
    """The codes of what stays move; what is merged is made of numbers."""
    flags = ["--strategy", strategy, "--remove", "1", "--data", str(text)]
    out, expected = tmp_path / "out", tmp_path / "expected"
    assert main(["chop", str(both[1]), str(out), *flags]) == 0
    assert main(["chop", str(both[2]), str(expected), *flags]) == 0
    if strategy == "average":
        assert history(out) == ["quantization", "dequantization", "chop"]
        check_same(out, expected)
    else:
        assert history(out) == ["quantization", "chop"]
        check_same(dense_of(out, tmp_path / "dense"), expected)


@pytest.mark.parametrize(
    "overrides",
    [
        ["dimchop.final=0.5", "dimchop.start=2", "dimchop.end=10", "dimchop.interval=2"],
        pytest.param(["adapter.rank=2", "adapter.base=int8"], marks=pytest.mark.thorough),
    ],
)
def test_training_begins_with_the_numbers(overrides: list[str], tmp_path: Path) -> None:
    folder = prepare(tmp_path)
    quantize_checkpoint(str(folder / "model"), folder / "codes", "int8")
    numbers_of(folder / "codes")
    every = ["evaluation.every=6", "checkpoints.every=6", "total_steps=12"]
    for name in ("codes", "numbers"):
        config = recipe(folder, *overrides, *every, f"model={folder / name}")
        train(config, tmp_path / f"run-{name}")
        assert main(["export", str(tmp_path / f"run-{name}"), str(tmp_path / f"out-{name}")]) == 0
    assert bits(tmp_path / "run-codes") == bits(tmp_path / "run-numbers")
    check_same(tmp_path / "out-codes", tmp_path / "out-numbers")
    assert history(tmp_path / "out-codes") == ["quantization", "dequantization", "training"]


def test_an_import_is_of_the_numbers(both: tuple[Kind, Path, Path], tmp_path: Path) -> None:
    assert main(["import", str(both[1]), str(tmp_path / "own")]) == 0
    assert main(["export", str(tmp_path / "own"), str(tmp_path / "out")]) == 0
    check_same(tmp_path / "out", both[2])
    assert history(tmp_path / "out") == ["quantization", "dequantization"]


@pytest.mark.parametrize("verb", ["magnitude", "activation"])
def test_what_others_quantized_is_refused(
    verb: str,
    both: tuple[Kind, Path, Path],
    text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    foreign = shutil.copytree(both[1], tmp_path / "foreign")
    config = json.loads((foreign / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["targets"] = ["re:.*proj"]
    (foreign / "config.json").write_text(json.dumps(config))
    name, *flags = flags_of(verb, text)
    assert main([name, str(foreign), str(tmp_path / "out"), *flags]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "(quantization_config: 'compressed-tensors'), and not as `chopjax quantize` does" in said
    assert not (tmp_path / "out").exists()


def test_scales_that_are_no_numbers_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.numpy import load_file as read
    from safetensors.numpy import save_file

    checkpoints.write_checkpoint(tmp_path / "m", hidden_size=64, intermediate_size=96)
    quantize_checkpoint(str(tmp_path / "m"), tmp_path / "q", "int8")
    tensors = read(tmp_path / "q" / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight_scale"][3] = np.nan
    save_file(tensors, tmp_path / "q" / "model.safetensors", {"format": "pt"})
    flags = ["--method", "magnitude", "--pattern", "2:4"]
    assert main(["sparsify", str(tmp_path / "q"), str(tmp_path / "out"), *flags]) == 2
    assert "model.layers.1.mlp.up_proj.weight holds NaN" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "q"), "--check"]) == 0
    assert "NaN or infinity: model.layers.1.mlp.up_proj.weight" in capsys.readouterr().out
