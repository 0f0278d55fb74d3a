"""What a run reports: metrics.jsonl, TensorBoard, the progress bar, times.

metrics.jsonl has one JSON object a line: one for every step ({"step", "loss", "grad_norm",
"learning_rate", "tokens", "step_seconds"}), one for every evaluation ({"step", "eval_loss",
"eval_tokens"}). Losses are in nats per token. A run that is resumed cuts off the lines after the
checkpoint that it starts from, so that no step stands twice.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from chopjax.errors import UserError
from chopjax.models import flops
from chopjax.models.config import ModelConfig
from chopjax.train.checkpoints import newest, steps
from chopjax.train.workdir import wait_for_all

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
RECENT_STEPS = 20  # that the progress bar's rates are over
MOST_SKIPS = 50  # updates left out in a row, by the spike guard, before the run is given up


class MetricsWriter:
    """Appends to WORKDIR/metrics.jsonl and, if asked, to TensorBoard's files.

    Of several processes the first one writes; all know which steps have been evaluated.
    """

    def __init__(self, workdir: Path, start_step: int, tensorboard: bool):
        path = workdir / METRICS
        first = jax.process_index() == 0
        if first:
            _cut_after(path, start_step)
        wait_for_all("metrics")
        self._evaluated = {row["step"] for row in read_metrics(workdir) if "eval_loss" in row}
        # All have read before the first one writes; it opens the file that the others have seen.
        wait_for_all("metrics read")
        self._file = path.open("a", buffering=1) if first else None  # a line at a time
        self._tensorboard: Any = None
        if tensorboard and first:
            from tensorboardX import SummaryWriter

            # Points after purge_step that a killed run wrote are hidden by TensorBoard.
            self._tensorboard = SummaryWriter(
                str(workdir / TENSORBOARD), purge_step=start_step + 1 if start_step else None
            )

    def has_evaluation(self, step: int) -> bool:
        """Whether held-out text has been evaluated after this step."""
        return step in self._evaluated

    def write(self, step: int, values: dict[str, float | int]) -> None:
        """One line, and one point of every value."""
        if "eval_loss" in values:
            self._evaluated.add(step)
        if self._file is None:
            return
        row = {name: _plain(value) for name, value in values.items()}
        self._file.write(json.dumps({"step": step} | row) + "\n")
        if self._tensorboard is not None:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)

    def flush(self) -> None:
        """To disk: called before a checkpoint, whose resumption relies on the lines before it."""
        if self._file is None:
            return
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        if self._file is not None:
            # What cannot be written on the way out of an error is not what is wrong.
            with contextlib.suppress(OSError) if kind else contextlib.nullcontext():
                self.flush()
                self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


def _plain(value: float) -> float | int | str:
    """NaN and infinity are not JSON; they are written as strings."""
    return value if isinstance(value, int) or math.isfinite(value) else str(value)


def _cut_after(path: Path, step: int) -> None:
    """Keep the lines up to `step`; a line that a kill cut off in the middle goes too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row["step"] <= step:
            kept.append(line + "\n")
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text("".join(kept))
    temporary.replace(path)


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, in order."""
    path = workdir / METRICS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Guard:
    """Stops a run whose loss is not a number, or from which the spike guard leaves all out."""

    def __init__(self, checkpoints: Path):
        self._checkpoints = checkpoints
        self._skipped = 0.0
        self._in_a_row = 0

    def check(self, step: int, values: dict[str, float]) -> None:
        """values: the step's metrics. Raises UserError."""
        if "skipped" in values:
            skipped = values["skipped"] > self._skipped
            self._skipped = values["skipped"]
            self._in_a_row = self._in_a_row + 1 if skipped else 0
            if self._in_a_row >= MOST_SKIPS:
                raise UserError(
                    f"steps {step - MOST_SKIPS + 1}-{step}: every update was left out, as a spike "
                    f"or not a number. {newest(self._checkpoints)}"
                )
        elif not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
            last = (steps(self._checkpoints) or [0])[-1]
            raise UserError(
                f"step {step}: loss {values['loss']}, gradient norm {values['grad_norm']}; it went "
                f"wrong in steps {last + 1}-{step}. " + self.advice()
            )

    def advice(self) -> str:
        """What is left, and what to do."""
        return (
            f"{newest(self._checkpoints)} Lower the learning rate, warm up longer, or set "
            "optimizer.spike_factor to leave such updates out."
        )


class Clock:
    """Times of steps, and what follows from them.

    MFU is model FLOPs (models/flops.py) over what the devices could do at best in the time of the
    steps. Goodput is the share of wall time since the run was started that was spent in steps: the
    rest is loading, compiling, evaluating, saving.

    shape: of a batch, [B, T]; its padding counts as work. peak: FLOP/s of all devices. started:
    time.monotonic() when the run began.
    """

    def __init__(self, config: ModelConfig, shape: tuple[int, int], peak: float, started: float):
        self._tokens = shape[0] * shape[1]
        self._flops = self._tokens * flops.training_per_token(config, shape[1])
        self._peak, self._started = peak, started
        self._last = time.monotonic()
        self.step_seconds: list[float] = []

    def restart(self) -> None:
        """What happened since the last step was not a step."""
        self._last = time.monotonic()

    def tick(self) -> float:
        """A step has ended; returns its seconds."""
        now = time.monotonic()
        self.step_seconds.append(now - self._last)
        self._last = now
        return self.step_seconds[-1]

    def shown(self) -> dict[str, str]:
        """For the progress bar, over the last steps."""
        recent = self.step_seconds[-RECENT_STEPS:]
        seconds = sum(recent) / len(recent)
        mfu = self._flops / seconds / self._peak
        return {"tok/s": f"{self._tokens / seconds:,.0f}", "MFU": f"{100 * mfu:.1f} %"}

    def summary(self) -> dict[str, float]:
        """tokens_per_second, mfu, percentiles of the step time in seconds, and goodput."""
        if not self.step_seconds:
            return {}
        busy, count = sum(self.step_seconds), len(self.step_seconds)
        p50, p90, p99 = np.percentile(self.step_seconds, [50, 90, 99])
        return {
            "tokens_per_second": self._tokens * count / busy,
            "mfu": self._flops * count / busy / self._peak,
            "step_seconds_p50": float(p50),
            "step_seconds_p90": float(p90),
            "step_seconds_p99": float(p99),
            "goodput": busy / (time.monotonic() - self._started),
        }
