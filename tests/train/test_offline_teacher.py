"""A teacher's answers beside transformers', in the windows that training cuts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
import transformers

from chopjax.data import top_k_writer
from chopjax.data.batches import Batches
from chopjax.data.prepare import prepare
from chopjax.data.store import open_store
from chopjax.data.top_k import find_top_k
from chopjax.errors import UserError
from chopjax.train.offline_teacher import Question, ask_teacher

T, K = 16, 7
SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    checkpoints.write_checkpoint(folder, **SIZES)
    return checkpoints.write_tokenizer(folder)


@pytest.fixture(scope="module")
def out(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    lines = [f"{word} {number}" for number in range(9) for word in checkpoints.TEXT.split()[:20]]
    (folder / "a.txt").write_text("\n".join(lines))
    prepare([folder / "a.txt"], model, folder / "out", unit="line", workers=1)
    return folder / "out"


def expected(
    model: Path, batch: dict[str, np.ndarray], masked: bool
) -> tuple[np.ndarray, np.ndarray]:
    """transformers' log-probabilities, sorted: each document on its own where they are masked."""
    theirs = transformers.AutoModelForCausalLM.from_pretrained(model)
    whole = np.empty((*batch["tokens"].shape, SIZES["vocab_size"]), np.float32)
    for row, tokens in enumerate(batch["tokens"]):
        segments = batch["segments"][row] if masked else np.ones_like(tokens)
        for segment in np.unique(segments):
            mine = segments == segment
            with torch.no_grad():
                found = theirs(torch.tensor(tokens[mine][None].astype(np.int64))).logits[0]
            whole[row, mine] = torch.log_softmax(found, -1).numpy()
    order = np.argsort(-whole, axis=-1, kind="stable")[..., :K]
    return order, np.take_along_axis(whole, order, axis=-1)


@pytest.mark.parametrize("masked", [False, True])
def test_beside_transformers(
    masked: bool, model: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches that do not divide the rows, shards that do not divide the batches."""
    monkeypatch.setattr(top_k_writer, "MIN_SHARD_BYTES", 11 * T * K * 4)
    said = ask_teacher(out, str(model), Question(T, K, masked, batch_size=4), overwrite=masked)
    assert len(said.shards) > 2
    assert said.teacher["name"] == str(model)
    store = open_store(out)
    batch = Batches(store, said.windows.rows, T, 5, masked, top_k=K).batch(0)
    ids, log_probs = expected(model, batch, masked)
    np.testing.assert_allclose(batch["top_log_probs"], log_probs, rtol=1e-3)  # of float16
    same = batch["top_tokens"] == ids
    gaps = np.abs(np.diff(log_probs)) > 1e-4  # rounding may turn two that are nearly equal
    assert same[..., 1:-1][gaps[..., 1:] & gaps[..., :-1]].all()
    assert same.mean() > 0.99
    assert (np.exp(batch["top_log_probs"]).sum(axis=-1) < 1.01).all()


ON_EIGHT = """
import sys
import jax
import numpy as np
from chopjax.train.offline_teacher import Question, ask_teacher

assert len(jax.devices()) == 8
ask_teacher(sys.argv[1], sys.argv[2], Question(16, 7), overwrite=True)

from models.test_top_k import compare, example
from chopjax.models.mesh import make_mesh

for shape in ({"fsdp": 2, "tensor": 4}, {"data": 4, "tensor": 2}):
    with jax.set_mesh(make_mesh(**({"data": 1} | shape))):
        compare(*example(8, 5, 8, 40), 12, 4)
print("agrees")
"""


@pytest.mark.thorough
def test_on_eight_devices(model: Path, out: Path) -> None:
    """More likeliest tokens than a device has of the vocabulary, too."""
    one = ask_teacher(out, str(model), Question(T, K), overwrite=True)
    row_N = np.arange(one.windows.rows)
    before = one.rows(row_N, K)
    environment = os.environ | {
        "JAX_NUM_CPU_DEVICES": "8",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    done = subprocess.run(
        [sys.executable, "-c", ON_EIGHT, str(out), str(model)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "agrees\n"
    eight = find_top_k(open_store(out))
    assert eight is not None
    after = eight.rows(row_N, K)
    np.testing.assert_allclose(after[1], before[1], rtol=2e-3)
    assert (after[0] == before[0]).mean() > 0.99


def test_questions_that_cannot_be_asked(model: Path, out: Path, tmp_path: Path) -> None:
    question = Question(64, 97, batch_size=0, dtype="int8")
    with pytest.raises(
        UserError, match=r"cannot be asked this:\n  --top-k 97: from 1 to 96.*"
    ) as e:
        ask_teacher(out, str(model), question)
    for words in ("--sequence-length 64: from 1 to 32", "--batch-size 0", "--dtype int8"):
        assert words in str(e.value)
    other = checkpoints.write_checkpoint(tmp_path / "other", **SIZES)
    checkpoints.write_tokenizer(other, vocab_size=95)
    with pytest.raises(UserError, match="it has another tokenizer than the tokens"):
        ask_teacher(out, str(other), Question(T, K))
    with pytest.raises(UserError, match="writes beside a local store"):
        ask_teacher("gs://bucket/store", str(model), Question(T, K))
    with pytest.raises(UserError, match="no such folder"):
        ask_teacher(tmp_path / "absent", str(model), Question(T, K))
