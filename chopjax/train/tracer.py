"""A trace of a few steps for TensorBoard's profiler."""

from __future__ import annotations

import re
from pathlib import Path

import jax

from chopjax.errors import UserError
from chopjax.progress import say
from chopjax.train.metrics import TENSORBOARD


class Tracer:
    """Traces the steps of "10-12", counted from 1, both ends included; none for an empty string."""

    def __init__(self, steps: str, workdir: Path):
        self.first, self.last = _range(steps)
        self.folder = workdir / TENSORBOARD
        self._running = False

    def before(self, step: int) -> None:
        """Before the update after `step` updates."""
        if step + 1 == self.first:
            jax.profiler.start_trace(str(self.folder))
            self._running = True

    def ends(self, step: int) -> bool:
        """Whether the trace ends after so many updates."""
        return self._running and step >= self.last

    def after(self, step: int) -> None:
        """When the update is through."""
        if self.ends(step):
            jax.profiler.stop_trace()
            self._running = False
            say(f"trace of steps {self.first}-{self.last}: tensorboard --logdir {self.folder}")


def _range(steps: str) -> tuple[int, int]:
    if not steps:
        return -1, -1
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", steps.strip())
    if not match:
        raise UserError(f'log.profile: {steps!r}; write the steps to trace as "10-12"')
    first = int(match[1])
    return first, max(first, int(match[2] or first))
