"""The clock's figures by hand."""

from __future__ import annotations

import time

import jax
import pytest

from chopjax.models import families, flops
from chopjax.train import metrics

CONFIG = families.translate(
    {"model_type": "llama", "vocab_size": 50, "hidden_size": 16, "intermediate_size": 24}
    | {"num_hidden_layers": 4, "num_attention_heads": 2, "max_position_embeddings": 32}
)[1]
PEAK = 1e9


def test_rates_percentiles_and_goodput(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    per_token = flops.training_per_token(CONFIG, 16)
    clock = metrics.Clock(per_token, (8, 16), PEAK, started=90.0)
    assert clock.summary() == {}
    for seconds in (1.0, 2.0, 3.0):
        now += seconds
        line = clock.tick()
    assert line == {
        "step_seconds": 3.0,
        "tokens_per_second_per_chip": pytest.approx(8 * 16 / 3 / 4),
        "mfu": pytest.approx(8 * 16 * per_token / (3 * 4 * PEAK)),
        "goodput": pytest.approx(6 / 16),
    }
    now += 4  # a checkpoint
    clock.restart()
    whole = clock.summary()
    assert whole["tokens_per_second"] == pytest.approx(8 * 16 * 3 / 6)
    assert whole["step_seconds_p50"] == 2.0
    assert whole["step_seconds_p90"] == pytest.approx(2.8)
    assert whole["goodput"] == pytest.approx(6 / 20)
    # The chopped model's steps: rates are its own, goodput the run's.
    half = CONFIG.keep((0, 1))
    clock.now_of(flops.training_per_token(half, 16))
    now += 1
    line = clock.tick()
    assert line["step_seconds"] == 1.0
    assert line["mfu"] == pytest.approx(
        8 * 16 * flops.training_per_token(half, 16) / (1 * 4 * PEAK)
    )
    assert line["goodput"] == pytest.approx(7 / 21)
    assert clock.summary()["step_seconds_p99"] == 1.0
