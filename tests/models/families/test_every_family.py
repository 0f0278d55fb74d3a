"""Every registered family, on tiny random models of its whole option space.

Against transformers in float32: logits and loss on 500 tokens, a training step's loss and gradient
norm, a chop beside deleted layers; against lm-evaluation-harness: requests; and bytes out and in.
"""

from __future__ import annotations

import copy
import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import checkpoints
import families
import family_steps
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from chopjax.checkpoint.export import export
from chopjax.checkpoint.load import load
from chopjax.checkpoint.open import open_checkpoint
from chopjax.chop.stream import chop_checkpoint
from chopjax.models import decoder, head, mesh
from chopjax.models.compute import Compute
from chopjax.models.config import ModelConfig
from chopjax.models.parameters import Params
from chopjax.score.harness import ChopjaxLM

LENGTH = 500  # longer than any window
DRAWS = 2
# Of two programs in float32 that sum in different orders.
LOGITS, LOSS, NATS = 1e-4, 1e-5, 1e-3
TABLES = [
    pytest.param(name, seed, marks=[pytest.mark.thorough] if seed else [])
    for name in families.NAMES
    for seed in range(DRAWS)
]


def named(some: list[str]) -> list[Any]:
    """All families; those beside some of every kind are made of the same parts."""
    return [
        name if name in some else pytest.param(name, marks=pytest.mark.thorough)
        for name in families.NAMES
    ]


def logits_of(model: Any, tokens_BT: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor(tokens_BT).long(), use_cache=False).logits
    return found


@pytest.mark.parametrize(("name", "seed"), TABLES)
def test_logits_bytes_and_chop(name: str, seed: int, tmp_path: Path) -> None:
    model = checkpoints.random_model(name, **families.draw(name, seed))
    model.save_pretrained(tmp_path / "parent")
    loaded = load(str(tmp_path / "parent"))
    config, rng = loaded.config, np.random.default_rng(seed)
    tokens_BT = rng.integers(0, config.vocab_size, (2, LENGTH), dtype=np.int32)

    expected = logits_of(model, tokens_BT)
    found, loss = jax.jit(functools.partial(logits_and_loss, config))(loaded.params, tokens_BT)
    assert np.abs(np.asarray(found) - expected.numpy()).max() <= LOGITS
    nll = torch.nn.functional.cross_entropy(
        expected[:, :-1].flatten(0, 1), torch.tensor(tokens_BT[:, 1:]).long().flatten()
    )
    assert abs(float(loss) - float(nll)) <= LOSS

    exported = tmp_path / "exported"
    export(
        config=config,
        raw_config=loaded.raw_config,
        params=loaded.params,
        assets=loaded.folder,
        out=exported,
        naming=loaded.naming,
        metadata=loaded.metadata,
    )
    assert tensors(exported) == tensors(tmp_path / "parent")
    assert stated(exported) == stated(tmp_path / "parent")

    keep = tuple(sorted(rng.permutation(config.num_layers)[: config.num_layers - 2].tolist()))
    chop_checkpoint(
        open_checkpoint(str(tmp_path / "parent")), keep, tmp_path / "chopped", "keep", {}
    )
    chopped = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "chopped", attn_implementation="eager"
    )
    assert torch.equal(logits_of(chopped, tokens_BT), logits_of(without(model, keep), tokens_BT))


def logits_and_loss(
    config: ModelConfig, params: Params, tokens_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    hidden_BTE = decoder.hidden_states(params, config, Compute(), tokens_BT)
    found = head.logits(head.head_of(params, config), hidden_BTE)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(found[:, :-1]), tokens_BT[:, 1:, None], -1)
    return found, -chosen.mean()


def tensors(folder: Path) -> dict[str, Any]:
    """What is in a file, as the reference reads it."""
    content = (folder / "model.safetensors").read_bytes()
    return dict(safetensors.deserialize(content))


def stated(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def without(model: Any, keep: tuple[int, ...]) -> Any:
    """transformers' model with all layers but these deleted, its config's lists sliced."""
    model = copy.deepcopy(model)
    parent, name = checkpoints.blocks_of(model)
    setattr(parent, name, torch.nn.ModuleList([getattr(parent, name)[layer] for layer in keep]))
    for config in {id(c): c for c in (model.config, parent.config)}.values():
        count = config.num_hidden_layers
        for key, value in list(vars(config).items()):
            if isinstance(value, list) and len(value) == count:
                setattr(config, key, [value[layer] for layer in keep])
        config.num_hidden_layers = len(keep)
    return model


@pytest.mark.parametrize("name", named(families.KINDS))
def test_a_training_step(name: str) -> None:
    """On one device, with the attention that training takes here."""
    found = family_steps.beside_torch(name, mesh.make_mesh(devices=jax.devices()[:1]))
    assert found["ours"] == pytest.approx(found["torch"], rel=1e-4)


@pytest.mark.thorough
def test_training_steps_on_a_mesh() -> None:
    """Norms of queries and keys by head and over heads, fused and few keys, ALiBi, experts:
    parameters over fsdp and tensor."""
    script = Path(family_steps.__file__)
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == len(family_steps.ON_A_MESH)
    for name, losses_and_norms in found.items():
        assert losses_and_norms["ours"] == pytest.approx(losses_and_norms["torch"], rel=1e-4), name


@pytest.mark.parametrize("name", named([*families.BY_LAYER, "mixtral"]))
def test_requests_as_the_harness_answers_them(name: str, tmp_path: Path) -> None:
    """Log-likelihoods and greedy flags, contexts shared and not, and generated text."""
    options = families.draw(name, 5) | {"vocab_size": 300}
    checkpoints.write_checkpoint(tmp_path, name, **options)
    checkpoints.write_tokenizer(tmp_path, vocab_size=300)
    theirs = HFLM(str(tmp_path), device="cpu", dtype="float32", batch_size=8, max_length=256)
    ours = ChopjaxLM(str(tmp_path), dtype="float32", max_length=256)
    text = "the cat sat on the mat. the dog sat on the log. " * 4
    pairs = [
        (text, " the cat"),
        (text, " a dog"),
        ("", " the"),
        (text[:70], text[70:150]),
        ("a", "?"),
    ]
    requests = [
        Instance("loglikelihood", {}, pair, 0, metadata=("requests", n, 1))
        for n, pair in enumerate(pairs)
    ]
    answers = zip(ours.loglikelihood(requests), theirs.loglikelihood(requests), strict=True)
    for pair, (mine, other) in zip(pairs, answers, strict=True):
        assert abs(mine[0] - other[0]) <= NATS, pair
        assert mine[1] == other[1], pair
    until = {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": False}
    prompts = [
        Instance("generate_until", {}, (context, until), 0, metadata=("prompts", n, 1))
        for n, context in enumerate([text, "the cat"])
    ]
    assert ours.generate_until(prompts) == theirs.generate_until(prompts)
