"""chopjax.Decoder as an nnx program sees it; docs/flax.md is run as it stands."""

from __future__ import annotations

import json
from pathlib import Path

import checkpoints
import documents
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file
from trees import structure

import chopjax
from chopjax.checkpoint.load import load
from chopjax.errors import UserError
from chopjax.models import mesh
from chopjax.models.config import Layer, ModelConfig, Norm, Rope
from chopjax.train import objectives, step
from chopjax.train.settings import Settings

DOCUMENT = documents.ROOT / "docs" / "flax.md"
TOKENS = jax.random.randint(jax.random.key(0), (2, 24), 0, 97, jnp.int32)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = checkpoints.write_checkpoint(tmp_path_factory.mktemp("parent") / "llama")
    return checkpoints.write_tokenizer(folder)


def training_losses(folder: Path, keep: tuple[int, ...], number: int) -> list[float]:
    """The losses of chopjax's own training step, same data and optimizer."""
    loaded = load(str(folder), keep=keep)
    settings, devices = Settings(), mesh.make_mesh()
    optimizer = optax.lion(1e-4, b1=0.9, b2=0.95)
    shape = TOKENS[:, 1:].shape
    batch = {
        "tokens": TOKENS[:, :-1],
        "targets": TOKENS[:, 1:],
        "segments": jnp.ones(shape, jnp.int32),
        "positions": jnp.arange(shape[1], dtype=jnp.int32)[None].repeat(shape[0], 0),
        "weights": jnp.ones(shape, jnp.float32),
    }
    losses = []
    with jax.set_mesh(devices):
        params = step.abstract_params(loaded.config, "float32", devices)
        abstract = step.abstract_state(params, optimizer, settings, devices)
        state = step.begin(loaded.params, optimizer, settings, abstract)
        objective = objectives.next_token(loaded.config, settings)
        train_step = step.make_train_step(objective, optimizer, settings, abstract, {}, devices)
        for _ in range(number):
            state, metrics = train_step(state, {}, batch)
            losses.append(float(metrics["loss"]))
    return losses


def test_the_document_runs_and_gets_the_training_steps_loss(
    parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = documents.run_python(DOCUMENT, {"tokens": TOKENS}, model=str(parent), keep="0,2-3")
    assert names["logits"].shape == (2, 24, 97)
    expected = training_losses(parent, (0, 2, 3), len(names["losses"]))
    np.testing.assert_allclose(names["losses"], expected, rtol=1e-5)
    assert expected[-1] < expected[0]
    trained = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "healed")
    with torch.no_grad():
        logits = trained(torch.tensor(np.asarray(TOKENS)).long()).logits.numpy()
    np.testing.assert_allclose(names["decoder"](TOKENS), logits, atol=1e-4)
    assert json.loads((tmp_path / "healed" / "chopjax.json").read_text())["kept_layers"] == [
        0,
        2,
        3,
    ]


def test_an_untrained_decoder_comes_back_byte_for_byte(parent: Path, tmp_path: Path) -> None:
    chopjax.Decoder.from_pretrained(parent).to_pretrained(tmp_path / "again")
    for name in ("config.json", "tokenizer.json"):
        assert (tmp_path / "again" / name).read_bytes() == (parent / name).read_bytes(), name
    again, before = (load_file(f / "model.safetensors") for f in (tmp_path / "again", parent))
    assert {name: tensor.tobytes() for name, tensor in again.items()} == {
        name: tensor.tobytes() for name, tensor in before.items()
    }


def test_its_state_is_the_parameter_layout(parent: Path) -> None:
    decoder = chopjax.Decoder.from_pretrained(str(parent), keep=(1, 3), param_dtype="bfloat16")
    expected = load(str(parent), keep=(1, 3), dtype="bfloat16").params
    assert structure(decoder.params) == structure(expected)
    jax.tree.map(np.testing.assert_array_equal, decoder.params, expected)


def test_random_parameters_have_no_checkpoint_behind_them(tmp_path: Path) -> None:
    layers, norm = (Layer(rope=Rope()),) * 3, Norm("rms", 1e-5)
    config = ModelConfig(
        "llama", 97, 8, layers, 2, 2, 4, 16, 64, norm, "silu", True, gated_mlp=True
    )
    decoder = chopjax.Decoder.from_scratch(config, nnx.Rngs(0))
    assert decoder(TOKENS).shape == (2, 24, 97)
    with pytest.raises(UserError, match="from_pretrained"):
        decoder.to_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_layers_that_are_not_there_are_refused(parent: Path) -> None:
    with pytest.raises(UserError, match="layers to keep"):
        chopjax.Decoder.from_pretrained(parent, keep=(0, 9))
