"""What a run reports: metrics.jsonl, TensorBoard, wandb, the progress bar, times.

metrics.jsonl has one JSON object a line: one for every step ({"step", "loss", "grad_norm",
"learning_rate", "tokens" so far, what else the step measures (step.py), and those of Clock}), one
for every evaluation ({"step", "eval_loss", the window loss of the held-out text, "eval_tokens"}),
and at the end one of the whole run, with percentiles of the step time (those of Clock.summary,
"run_" before each). TensorBoard and wandb get the same. Losses are in nats per token. A run that is
resumed cuts off the lines after the checkpoint that it starts from, so that no step stands twice.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from chopjax.errors import UserError
from chopjax.hardware import PEAK_BFLOAT16
from chopjax.launch.distributed import wait_for_all
from chopjax.train.checkpoints import newest, steps
from chopjax.train.metrics_file import METRICS, cut_after, read_metrics

TENSORBOARD = "tensorboard"
RECENT_STEPS = 20  # that the progress bar's rates are over
MOST_SKIPS = 50  # updates left out in a row, by the spike guard, before the run is given up
_PROBE = 1024  # side of the matrices that an unknown device is measured with


class MetricsWriter:
    """Appends to WORKDIR/metrics.jsonl and, if asked, to TensorBoard's files and a run of wandb.

    Of several processes the first one writes; all know which steps have been evaluated.
    """

    def __init__(self, workdir: Path, start_step: int, tensorboard: bool, wandb: Any = None):
        path = workdir / METRICS
        first = jax.process_index() == 0
        if first:
            cut_after(path, start_step)
        wait_for_all("metrics")
        self._evaluated = {row["step"] for row in read_metrics(workdir) if "eval_loss" in row}
        # All have read before the first one writes; it opens the file that the others have seen.
        wait_for_all("metrics read")
        self._file = path.open("a", buffering=1) if first else None  # a line at a time
        self._wandb = wandb  # a run; None for none
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
        if self._wandb is not None:
            self._wandb.log(values, step=step)

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

    step_seconds            from the end of the step before (or of what stood between) to its own
    tokens_per_second_per_chip    B·T / step_seconds / devices; padding counts as work
    mfu                     B·T · FLOPs a token / (step_seconds · peak · devices), FLOPs a token by
                            the formula in models/flops.py, peak by train/metrics.py
    goodput                 the sum of step_seconds since this process began the run / wall time
                            since then; the rest is loading, compiling, evaluating, saving

    flops: of one token. shape: of a batch, [B, T]. peak: FLOP/s of one device. started:
    time.monotonic() when the run began. A chip is a jax device (of TPU v2 and v3, one core of two).
    """

    def __init__(self, flops: int, shape: tuple[int, int], peak: float, started: float):
        self._shape, self._peak, self._started = shape, peak, started
        self._devices = jax.device_count()
        self._busy = 0.0
        self.restart()
        self.now_of(flops)

    def now_of(self, flops: int) -> None:
        """Steps from here on are those of another model: rates and percentiles begin anew."""
        tokens = self._shape[0] * self._shape[1]
        self._tokens = tokens / self._devices
        self._flops = self._tokens * flops
        self.step_seconds: list[float] = []

    def restart(self) -> None:
        """What happened since the last step was not a step."""
        self._last = time.monotonic()

    def tick(self) -> dict[str, float]:
        """A step has ended: its line in metrics.jsonl, as above."""
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        self.step_seconds.append(seconds)
        self._busy += seconds
        return {"step_seconds": seconds} | self._rates(seconds)

    def shown(self) -> dict[str, str]:
        """For the progress bar, over the last steps, of all devices."""
        recent = self.step_seconds[-RECENT_STEPS:]
        rates = self._rates(sum(recent) / len(recent))
        speed = rates["tokens_per_second_per_chip"] * self._devices
        return {"tok/s": f"{speed:,.0f}", "MFU": f"{100 * rates['mfu']:.1f} %"}

    def summary(self) -> dict[str, float]:
        """Rates over all steps, their sum over all devices, and percentiles of step_seconds."""
        if not self.step_seconds:
            return {}
        rates = self._rates(sum(self.step_seconds) / len(self.step_seconds))
        p50, p90, p99 = np.percentile(self.step_seconds, [50, 90, 99])
        return {
            "tokens_per_second": rates["tokens_per_second_per_chip"] * self._devices,
            **rates,
            "step_seconds_p50": float(p50),
            "step_seconds_p90": float(p90),
            "step_seconds_p99": float(p99),
        }

    def _rates(self, seconds: float) -> dict[str, float]:
        return {
            "tokens_per_second_per_chip": self._tokens / seconds,
            "mfu": self._flops / seconds / self._peak,
            "goodput": self._busy / max(time.monotonic() - self._started, 1e-9),
        }


def peak_flops(dtype: str) -> tuple[float, str]:
    """FLOP/s of one device here, and where the figure is from.

    Known accelerators: the table, for bfloat16 whatever the dtype, as everyone reports it. Others
    (processors) are measured: the best of a few matrix products in `dtype`.
    """
    kind = jax.devices()[0].device_kind
    known = [name for name in PEAK_BFLOAT16 if kind.startswith(name)]
    if known:
        name = max(known, key=len)
        return PEAK_BFLOAT16[name], f"{name}, bfloat16 peak of the data sheet"
    # All fake or real devices of one processor share it.
    local = len(jax.local_devices())
    return _measured(dtype) / local, f"{kind}, measured on {dtype} matrix products"


@functools.cache
def _measured(dtype: str) -> float:
    x = jnp.ones((_PROBE, _PROBE), dtype)
    product = jax.jit(lambda a, b: a @ b)
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * _PROBE**3 / best
