"""--method gptq over a whole checkpoint: what is said of it, interrupted, and by mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import torch
import transformers
from quantize.decoded import dense_of
from sparse_peers import rows, torch_loss

from chopjax.checkpoint.open import open_checkpoint
from chopjax.cli import main
from chopjax.quantize import by_text
from chopjax.quantize.quantize import quantize_checkpoint
from chopjax.sparsify.text import Text, read_text

SEQUENCES, LENGTH = 12, 24


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gptq") / "parent"
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    checkpoints.write_checkpoint(folder, "llama", torch.bfloat16, vocab_size=300, **sizes)
    return checkpoints.write_tokenizer(folder, 300)


@pytest.fixture(scope="module")
def looked_at(parent: Path, text: Path) -> Text:
    return read_text(open_checkpoint(str(parent)), [str(text)], SEQUENCES, LENGTH, 0, "text")


def run(parent: Path, text: Path, out: Path) -> dict[str, Any]:
    return by_text.quantize_by_text(
        str(parent), out, "int4", [str(text)], sequences=SEQUENCES, sequence_length=LENGTH
    )


def loss_of(folder: Path, batches: Any) -> float:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    return torch_loss(model.eval(), rows(batches))


def test_the_losses_are_the_folders(
    parent: Path, text: Path, looked_at: Text, tmp_path: Path
) -> None:
    out, plain = tmp_path / "out", tmp_path / "nearest"
    done = run(parent, text, out)
    assert looked_at.held_back
    losses = {name: pytest.approx(value, abs=1e-4) for name, value in done["loss"].items()}
    assert loss_of(parent, looked_at.held_out) == losses["parent"]
    dense = dense_of(out, tmp_path / "dense")
    assert loss_of(dense, looked_at.held_out) == losses["quantized"]
    quantize_checkpoint(str(parent), plain, "int4")
    # What it minimises is the error on what it looked at.
    float_loss = loss_of(parent, looked_at.calibration)
    moved = [
        abs(loss_of(folder, looked_at.calibration) - float_loss)
        for folder in (dense, dense_of(plain, tmp_path / "dense-nearest"))
    ]
    assert moved[0] < moved[1]
    (entry,) = json.loads((out / "chopjax.json").read_text())["history"]
    assert entry["method"] == "gptq"
    assert entry["loss"] == done["loss"]
    assert "| quantization: loss |" in (out / "README.md").read_text()
    assert (out / "model.safetensors").stat().st_size == (
        plain / "model.safetensors"
    ).stat().st_size


def test_a_run_that_ended_early_goes_on(
    parent: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(by_text, "losses_on", fail)
        with pytest.raises(KeyboardInterrupt):
            run(parent, text, tmp_path / "out")
    assert run(parent, text, tmp_path / "out")["layers_from_before"] == 2
    assert run(parent, text, tmp_path / "whole")["layers_from_before"] == 0
    for path in (tmp_path / "whole").glob("[!.]*"):  # the mark says when files were last written
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_verb(
    parent: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["quantize", str(parent), str(tmp_path / "out"), "--weights", "int8"]
    for flags, message in (
        (["--method", "gptq"], "--method gptq looks at what matrices read: give --data FILE"),
        (["--data", str(text)], "is for --method gptq"),
        (["--sequences", "4"], "is for --method gptq"),
        (["--method", "gptq", "--data", str(text), "--sequences", "0"], "--sequences 0"),
    ):
        assert main([*words, *flags]) == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    flags = ["--method", "gptq", "--data", str(text), "--sequences", "4"]
    assert main([*words, *flags]) == 0
    assert ", quantized " in capsys.readouterr().out
