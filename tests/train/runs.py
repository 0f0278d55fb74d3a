"""Small training runs: a model of a few thousand parameters, tokens with a pattern to learn."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from data.stores import write_store
from ml_collections import ConfigDict

from chopjax.checkpoint.orbax_folder import PYTREE
from chopjax.data.tokenizer import load_tokenizer
from chopjax.train import checkpoints, metrics
from chopjax.train.config_file import override
from chopjax.train.metrics_file import read_metrics
from chopjax.train.settings import default_config

VOCAB = 97
STEPS = 12


def prepare(folder: Path) -> Path:
    """FOLDER/model (4 layers, with tokenizer), FOLDER/train and FOLDER/held_out."""
    from checkpoints import write_checkpoint, write_tokenizer

    write_checkpoint(folder / "model", hidden_size=16, intermediate_size=24, head_dim=8)
    write_tokenizer(folder / "model")
    fingerprint = load_tokenizer(folder / "model").fingerprint
    random = np.random.default_rng(0)
    for name, count in {"train": 60, "held_out": 4}.items():
        documents = [
            [0, *((np.arange(40) * random.integers(1, 4) + number) % (VOCAB - 1) + 1).tolist()]
            for number in range(count)
        ]
        write_store(folder / name, [documents])
        path = folder / name / "store.json"
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {"tokenizer_fingerprint": fingerprint}))
    return folder


def recipe(folder: Path, *overrides: str) -> ConfigDict:
    """The config of a run of 12 steps over what `prepare` made."""
    config = default_config()
    config.model = str(folder / "model")
    config.data.train = str(folder / "train")
    config.data.evaluation = str(folder / "held_out")
    config.data.batch_size = 4
    config.data.sequence_length = 16
    config.total_steps = STEPS
    config.optimizer.peak_learning_rate = 3e-3
    config.optimizer.warmup_steps = 2
    config.checkpoints.every = 5
    config.log.tensorboard = False
    for each in overrides:
        override(config, each)
    return config


def bits(workdir: Path, step: int | None = None) -> dict[str, str]:
    """Every array of a checkpoint (the newest one) by a digest of its bits."""
    folder = workdir / "checkpoints"
    step = step or checkpoints.steps(folder)[-1]
    from orbax.checkpoint import v1 as ocp

    tree = ocp.load((folder / str(step)).absolute(), checkpointable_name=PYTREE)
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path): hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()
        for path, leaf in leaves
    }


def lines(workdir: Path, key: str) -> dict[int, float]:
    """Step → value, of the lines of metrics.jsonl that have the key; no step stands twice."""
    rows = [row for row in read_metrics(workdir) if key in row]
    assert len(rows) == len({row["step"] for row in rows})
    return {row["step"]: row[key] for row in rows}


def signal_after(monkeypatch: pytest.MonkeyPatch, step: int, number: signal.Signals) -> None:
    """Send this process a signal when the line of a step is written."""
    at_step(monkeypatch, step, lambda: signal.raise_signal(number))


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], Any]) -> None:
    """Do something when the line of a step is written."""
    write = metrics.MetricsWriter.write

    def patched(self: metrics.MetricsWriter, now: int, values: dict[str, float | int]) -> None:
        write(self, now, values)
        if now == step and "loss" in values:
            action()

    monkeypatch.setattr(metrics.MetricsWriter, "write", patched)
