"""What healing costs: a step of it, a repair, and a training run as its metrics have it.

The time of a step is measured on this machine before anything is trained, and written down, so that
a run that goes on keeps the number of steps that was decided:

    WORKDIR/step_times.json    of every way of training: seconds of a step, and on what
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from chopjax.chop.analysis import LONGEST
from chopjax.chop.fold_place import gaps_of
from chopjax.chop.repair_walk import layer_runs
from chopjax.disk.atomic import new_file
from chopjax.errors import UserError
from chopjax.keep import Keep
from chopjax.models import flops
from chopjax.models.config import ModelConfig
from chopjax.models.mesh import make_mesh
from chopjax.progress import say
from chopjax.runs.budget import Cost
from chopjax.runs.inputs import digest
from chopjax.runs.settings import CalibrationSettings
from chopjax.train import same_run
from chopjax.train import settings as training
from chopjax.train.metrics_file import read_metrics
from chopjax.train.origin import find_origin
from chopjax.train.settings import Settings as HealSettings
from chopjax.train.task import task_of
from chopjax.train.teacher import Teacher, find_teacher
from chopjax.train.timing import step_seconds

TIMES = "step_times.json"
CONVENTIONS = {
    "FLOPs": "model FLOPs, matrix products alone. A step of training: "
    f"{flops.FORMULA}, or {flops.ADAPTED}{flops.TAUGHT} where there is one. A repair: the layers "
    "that it runs over its text, forwards, and 4·D² a token and gap for the sums of least squares. "
    "Not counted: the optimizer, held-out losses, what the backward pass computes twice",
    "hours": "wall time of training steps, without loading, compiling, held-out losses and "
    "checkpoints; of a repair all that it took",
}


def step_cost(workdir: Path, model: ModelConfig, heal: HealSettings, in_time: bool) -> Cost:
    """Of one step of training, on all devices. in_time: its time, too, which is measured where it
    was not before.

    heal: with what the run begins with; model: what it trains.
    """
    teacher = _teacher(heal)
    seconds = _step_seconds(workdir, model, heal, teacher) if in_time else 0.0
    return Cost(step_flops(model, heal, teacher), seconds)


def step_flops(model: ModelConfig, heal: HealSettings, teacher: Teacher | None = None) -> int:
    """teacher: that of heal.teacher.model."""
    data, sizes = heal.data, heal.mesh
    mesh = make_mesh(sizes.data, sizes.fsdp, sizes.tensor, sizes.slices)
    with jax.set_mesh(mesh):
        a_token = task_of(model, heal, mesh, teacher).flops
    return a_token * data.batch_size * data.sequence_length


def _teacher(heal: HealSettings) -> Teacher | None:
    if not heal.teacher.model:
        return None
    origin, description = find_origin(heal)
    provenance = description.provenance if description else None
    return find_teacher(heal, origin, provenance)[0]


def _step_seconds(
    workdir: Path, model: ModelConfig, heal: HealSettings, teacher: Teacher | None
) -> float:
    # What changes no shape changes no time.
    optimizer = dataclasses.replace(
        heal.optimizer, peak_learning_rate=0.0, warmup_steps=0, final_fraction=0.0, weight_decay=0.0
    )
    same = dataclasses.replace(
        heal, model="", revision="", chop=training.ChopSettings(), total_steps=1, seed=0,
        from_scratch=False, optimizer=optimizer,
    )  # fmt: skip
    shapes = [repr(model), repr(teacher.config) if teacher else ""]
    key = digest([shapes, same_run.meaning(dataclasses.asdict(same))])[:16]
    times = _read_times(workdir / TIMES)
    if key not in times:
        seconds, device = step_seconds(model, heal, teacher), jax.devices()[0].device_kind
        say(f"a step takes {seconds:.4f} s ({device}, {model.num_layers} layers)")
        times = {**times, key: {"seconds": seconds, "device": device}}
        with new_file(workdir / TIMES, overwrite=True) as temporary:
            temporary.write_text(json.dumps(times, indent=1) + "\n")
    return float(times[key]["seconds"])


def _read_times(path: Path) -> Mapping[str, Any]:
    if not path.exists():
        return {}
    try:
        times: Mapping[str, Any] = json.loads(path.read_bytes())
        if not all(each["seconds"] > 0 for each in times.values()):
            raise ValueError("seconds that no step takes")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path}: damaged ({error}). Move it away to have steps timed again; a training run "
            "that has begun then needs the number of steps that it began with"
        ) from None
    return times


def repair_flops(parent: ModelConfig, keep: Keep, kind: str, tokens: int, length: int) -> float:
    """Of a repair without training that looks at so many tokens, in sequences of this length."""
    gaps = 0 if kind == "scalar" else len(gaps_of(keep, parent.num_layers))
    layers = layer_runs(keep, parent.num_layers, kind) * flops.layer_per_token(parent, length)
    return tokens * (layers + gaps * 4 * parent.embed_dim**2)


def repair_at_most(
    calibration: CalibrationSettings, parent: ModelConfig, keep: Keep, kind: str
) -> Cost:
    """What a repair takes, in FLOPs, if the text has as many tokens as may be looked at."""
    length = calibration.sequence_length or min(parent.max_positions, LONGEST)
    tokens = calibration.sequences * length
    return Cost(repair_flops(parent, keep, kind, tokens, length))


def repair_cost(parent: ModelConfig, keep: Keep, about: Mapping[str, Any]) -> Cost:
    """about: of the repair, as chopjax.json has it."""
    tokens, length = about["tokens"], about["sequence_length"]
    return Cost(repair_flops(parent, keep, about["kind"], tokens, length), about["seconds"])


def trained(folder: Path, step: Cost, before: Cost) -> dict[str, Any]:
    """What a training run cost in all, with what came before it, and its held-out loss on the way.

    step: what a step was said to cost. curve: window losses, each with what it had cost so far.
    """
    at: dict[str, Any] = {"steps": 0, "tokens": 0, **before._asdict()}
    curve = []
    for row in read_metrics(folder):
        if "loss" in row:
            at = {
                "steps": row["step"],
                "tokens": row["tokens"],
                "flops": before.flops + row["step"] * step.flops,
                "seconds": at["seconds"] + row["step_seconds"],
            }
        if "eval_loss" in row:
            curve.append(at | {"loss": row["eval_loss"]})
    each = {"step_flops": step.flops, "step_seconds": step.seconds or None}
    return at | each | {"curve": curve}
