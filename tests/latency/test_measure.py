"""Latency: what a pass computes, what is counted, the line, and the command."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chopjax.cli import main
from chopjax.latency import measure as latency
from chopjax.latency.models import first_layers, kept_layers, open_models
from chopjax.models import parameters
from chopjax.models.compute import Compute
from chopjax.models.config import ModelConfig
from chopjax.models.decoder import hidden_states, init
from chopjax.models.families import translate
from chopjax.models.parameters import Params
from chopjax.score.steps import STRIDE

RAW = {
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
CONFIG: ModelConfig = translate(RAW)[1]


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(RAW))
    return path


def test_a_forward_pass_meets_every_logit(monkeypatch: pytest.MonkeyPatch) -> None:
    """In chunks or whole, it is the normaliser of what the decoder gives."""
    params = init(CONFIG, jax.random.key(0))
    tokens_BT = jax.random.randint(jax.random.key(1), (2, 12), 0, 97)
    hidden_BTD = np.asarray(hidden_states(params, CONFIG, Compute(), tokens_BT), np.float64)
    logit_BTV = hidden_BTD @ np.asarray(params["head"]["kernel"], np.float64)
    expected_BT = np.log(np.exp(logit_BTV).sum(axis=-1))
    for most in (latency.LOGITS, 97 * 2 * 4):
        monkeypatch.setattr(latency, "LOGITS", most)
        found_BT = latency._forward(params, tokens_BT, CONFIG, Compute())
        np.testing.assert_allclose(found_BT, expected_BT, atol=1e-5)


def test_every_phase_of_a_model_and_of_nothing() -> None:
    params = init(CONFIG, jax.random.key(0))
    models = {"whole": (params, CONFIG), "bare": first_layers(params, CONFIG, 0)}
    turns = []
    found = latency.measure(models, 2, 16, rounds=2, advance=lambda: turns.append(1))
    assert len(turns) == 3
    bytes_whole = 4 * parameters.count(CONFIG)
    for phase in latency.PHASES:
        whole, bare = found["whole"][phase], found["bare"][phase]
        assert 0 < whole.low <= whole.seconds <= whole.high
        assert whole.memory is None or whole.memory >= bytes_whole - 4 * 97 * 32
        assert whole.flops > bare.flops > 0
        assert whole.traffic > bare.traffic
    # By hand: the head alone, for all positions, for the last one, and for the new token.
    head = 2 * 97 * 32
    assert [found["bare"][phase].flops for phase in latency.PHASES] == [
        2 * 16 * head,
        2 * head,
        2 * head,
    ]
    assert found["bare"]["decode"].traffic == 4 * (97 * 32 + 32)


def test_a_window_bounds_the_cache_that_a_token_reads() -> None:
    near = dataclasses.replace(CONFIG.layers[0], window=10)
    config = dataclasses.replace(CONFIG, layers=(near, *CONFIG.layers[1:]))
    params = init(CONFIG, jax.random.key(0))
    slots = 64 + STRIDE

    def traffic(config: ModelConfig) -> int:
        return latency._work(params, config, 2, 64, "decode")[1]

    one_slot = 2 * 2 * CONFIG.num_kv_heads * CONFIG.head_dim * 4
    assert traffic(CONFIG) - traffic(config) == (slots - 10) * one_slot


def test_first_layers() -> None:
    params: Params = {"embed": jnp.ones(3), "blocks": {"w": jnp.arange(8.0).reshape(4, 2)}}
    chopped, config = first_layers(params, CONFIG, 3)
    assert config.num_layers == 3
    np.testing.assert_array_equal(chopped["blocks"]["w"], params["blocks"]["w"][:3])


def test_the_line() -> None:
    line = latency.fit([3, 6, 12], [0.5 + 0.25 * n for n in (3, 6, 12)])
    assert line is not None
    assert (line.intercept, line.slope, line.r_squared) == pytest.approx((0.5, 0.25, 1.0))
    assert latency.fit([4, 4], [1.0, 1.1]) is None


def test_kept_layers() -> None:
    assert kept_layers(None, 32) == [24, 16, 8]
    assert kept_layers(None, 2) == [1]
    assert kept_layers(None, 1) == []
    assert kept_layers("0", 8) == []
    assert kept_layers("0.5, 2,50%", 8) == [6, 4]


def test_command(config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "plot"
    words = [str(config_file), "--random", "--rounds", "2", "--length", "16", "--remove", "2"]
    assert main(["latency", *words, "--plot", str(plot)]) == 0
    printed = capsys.readouterr().out
    assert "2 of 4 layers" in printed
    assert "embedding and head alone" in printed
    assert plot.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert plot.with_suffix(".svg").exists()


def test_two_models_as_json(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = config_file.with_name("other.json")
    other.write_text(json.dumps(RAW | {"hidden_size": 48, "head_dim": 8}))
    words = [str(config_file), str(other), "--random", "--rounds", "1", "--length", "8", "--json"]
    assert main(["latency", *words, "--weights", "fp8"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["weights"] == "fp8"
    assert [model["layers"] for model in found["models"]] == [4, 4, 0]
    assert found["lines"]["forward"] is None  # of other widths: no line through them
    assert found["models"][0]["decode"]["seconds"] > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch", "0"], "--batch 0: at least 1"),
        (["--length", "65"], "--length 65: the context length is 64"),
        (["--remove", "4"], "from 1 to 3 of the 4 layers"),
        (["--remove", "half"], "'half' is not a number of layers"),
        (["--plot", "nowhere/x"], "no folder nowhere"),
        (["{model}"], "the same model twice"),
        (["--weights", "int4"], "blocks/mlp/down has 56 inputs"),
    ],
)
def test_mistakes(
    flags: list[str], message: str, config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.format(model=config_file) for word in flags]
    assert main(["latency", *words, str(config_file), "--random"]) == 2
    assert message in capsys.readouterr().err


def test_weights_are_needed_without_random(
    config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["latency", str(config_file.parent)]) == 2
    assert "safetensors" in capsys.readouterr().err


def test_random_weights_have_the_dtype(config_file: Path) -> None:
    models = open_models([str(config_file)], None, "bfloat16", True, "0")
    ((params, config),) = models.values()
    assert config.num_layers == 4
    assert {str(array.dtype) for array in jax.tree.leaves(params)} == {"bfloat16"}
