"""libtpu stays asleep where there is no TPU, and only there."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import pytest

from chopjax import hardware


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine with libtpu installed, no accelerator, and nothing said about the platform."""
    for name in list(os.environ):
        if name == "JAX_PLATFORMS" or name.startswith("TPU_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(hardware, "has_tpu", lambda: False)
    monkeypatch.setattr(hardware, "GPU_DEVICES", ())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    yield monkeypatch
    os.environ.pop("JAX_PLATFORMS", None)  # what the function set; monkeypatch restores the rest


def test_no_accelerator(machine: Any) -> None:
    hardware.skip_absent_tpu()
    assert os.environ["JAX_PLATFORMS"] == "cpu"


@pytest.mark.parametrize("what", ["a TPU", "a GPU", "no libtpu", "a pod's variable"])
def test_left_alone(machine: Any, what: str) -> None:
    if what == "a TPU":
        machine.setattr(hardware, "has_tpu", lambda: True)
    elif what == "a GPU":
        machine.setattr(hardware, "GPU_DEVICES", ("/dev/null",))
    elif what == "no libtpu":
        machine.setattr(importlib.util, "find_spec", lambda name: None)
    else:
        machine.setenv("TPU_WORKER_ID", "0")
    hardware.skip_absent_tpu()
    assert "JAX_PLATFORMS" not in os.environ


def test_the_users_word_counts(machine: Any) -> None:
    machine.setenv("JAX_PLATFORMS", "tpu")
    hardware.skip_absent_tpu()
    assert os.environ["JAX_PLATFORMS"] == "tpu"
