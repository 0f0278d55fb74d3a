"""The language model of a model with a vision tower, alone, beside transformers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from chop_models import write_model

from chopjax import cli
from chopjax.checkpoint.load import load


@pytest.mark.parametrize(
    ("name", "text"),
    [("gemma3", "gemma3_text"), ("mistral3", "mistral"), ("llava", "llama"), ("internvl", "qwen2")],
)
def test_the_text_model_computes_what_it_did_inside(name: str, text: str, tmp_path: Path) -> None:
    write_model(tmp_path / "whole", name)
    raw = json.loads((tmp_path / "whole" / "config.json").read_text())
    layers = raw["text_config"]["num_hidden_layers"]
    words = ["chop", tmp_path / "whole", tmp_path / "text", "--text-only"]
    assert cli.main([*map(str, words)]) == 0

    stated = json.loads((tmp_path / "text" / "config.json").read_text())
    assert stated["model_type"] == text
    tokens = torch.tensor(np.random.default_rng(0).integers(0, stated["vocab_size"], (1, 40)))
    whole = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "whole").eval()
    alone = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "text").eval()
    with torch.no_grad():
        assert torch.equal(alone(tokens).logits, whole(tokens).logits)
    assert load(str(tmp_path / "text")).config.num_layers == layers


def test_chopped_and_alone_at_once(tmp_path: Path) -> None:
    write_model(tmp_path / "whole", "gemma3")
    words = ["chop", tmp_path / "whole", tmp_path / "text", "--text-only", "--keep", "0,2"]
    assert cli.main([*map(str, words)]) == 0
    before = safetensors.numpy.load_file(tmp_path / "whole" / "model.safetensors")
    after = safetensors.numpy.load_file(tmp_path / "text" / "model.safetensors")
    assert {name.split(".")[2] for name in after if name.startswith("model.layers.")} == {"0", "1"}
    (old,) = [
        name for name in before if name.endswith(".2.mlp.up_proj.weight") and "vision" not in name
    ]
    assert before[old].tobytes() == after["model.layers.1.mlp.up_proj.weight"].tobytes()


def test_where_there_is_nothing_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(tmp_path / "llama", "llama")
    words = ["chop", str(tmp_path / "llama"), str(tmp_path / "out"), "--text-only"]
    assert cli.main([*words, "--strategy", "input", "--remove", "1"]) == 2
    assert "leave --text-only out" in capsys.readouterr().err
    assert cli.main([*words, "--strategy", "sleb", "--remove", "1", "--data", "x"]) == 2
    assert "write the language model first" in capsys.readouterr().err


def test_other_verbs_say_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(tmp_path / "whole", "gemma3")
    assert cli.main(["import", str(tmp_path / "whole"), str(tmp_path / "out")]) == 2
    assert "--text-only" in capsys.readouterr().err
