"""The time of a step is taken on the step that a run would make."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from checkpoints import TINY

from chopjax.errors import UserError
from chopjax.models import families
from chopjax.train.settings import ComputeSettings, DataSettings, Settings
from chopjax.train.timing import step_seconds

RAW: dict[str, Any] = TINY | {"model_type": "llama", "max_position_embeddings": 32}


def test_the_steps_after_the_first_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = families.translate(RAW)[1]
    ticks = iter([0.0, 9.0, 9.0, 18.0] + [20.0 + n // 2 * 3 + n % 2 for n in range(14)])
    monkeypatch.setattr("chopjax.train.timing.perf_counter", lambda: next(ticks))
    data = DataSettings(batch_size=2, sequence_length=16)
    settings = dataclasses.replace(Settings(model="m", data=data), total_steps=5)
    assert step_seconds(model, settings) == 1.0
    assert next(ticks, None) is None, "two steps go uncounted, seven are timed"


def test_the_step_is_compiled_with_the_run_s_options() -> None:
    data = DataSettings(batch_size=2, sequence_length=16)
    compute = ComputeSettings(compiler_options="xla_nonsense=true")
    settings = Settings(model="m", data=data, compute=compute, total_steps=5)
    with pytest.raises(UserError, match="No such compile option: 'xla_nonsense'"):
        step_seconds(families.translate(RAW)[1], settings)
