"""The training runs of a sweep's points: their settings, how many steps they make, what they cost.

Where methods are compared, held-out text is measured on the way, in windows of the training length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from chopjax.errors import UserError
from chopjax.keep import ranges
from chopjax.models import mesh as meshes
from chopjax.models.config import ModelConfig
from chopjax.models.parameters import Params
from chopjax.runs import costs, healing
from chopjax.runs.budget import Cost, Plan, parse_budget, steps_within
from chopjax.runs.methods import FULL, SCRATCH, Method, heal_settings
from chopjax.runs.points import Point
from chopjax.runs.settings import SweepSettings, heal_of
from chopjax.runs.strategies import Change, has_zeros, masked_by
from chopjax.train import same_run
from chopjax.train import settings as training
from chopjax.train.dimchop_settings import DimChopSettings
from chopjax.train.evaluation import held_out_loss
from chopjax.train.loop import train
from chopjax.train.settings import PARENT, TeacherSettings
from chopjax.train.settings import Settings as HealSettings

TOKENS, HELD_OUT = "tokens", "tokens-held_out"
EVALUATIONS = 10  # of held-out text in a run, where the settings leave it open


def compares(settings: SweepSettings) -> bool:
    """Whether methods of healing are compared, with what they cost."""
    return bool(settings.methods or settings.budget)


def steps_of(
    settings: SweepSettings,
    workdir: Path,
    parent: ModelConfig,
    points: Sequence[tuple[Point, Cost]],
) -> list[tuple[int, Cost]]:
    """Of trained points, each with what is spent before its first step: how many steps it makes,
    and what one costs.

    Raises UserError where the budget is less than one step.
    """
    budget = parse_budget(settings.budget) if settings.budget else None
    in_time, plans = budget is not None and budget.is_time, []
    for point, before in points:
        heal = _heal_of(settings, point)
        begun = dataclasses.replace(heal, **_from_parent(settings, point, heal))
        step = costs.step_cost(workdir, point.config(parent), begun, in_time)
        plans.append(Plan(point.method.name, step, before))
    if budget is None:
        steps = [heal_of(settings, point.method).total_steps for point, _ in points]
    else:
        steps = steps_within(budget, plans)
    return [(count, plan.step) for count, plan in zip(steps, plans, strict=True)]


def config_of(
    settings: SweepSettings, workdir: Path, point: Point, steps: int, start: Path | None = None
) -> ConfigDict:
    """start: a checkpoint of the point to begin with; without one the run chops the parent
    itself."""
    heal = _heal_of(settings, point, steps)
    begin = _from_parent(settings, point, heal)
    if start:
        begin = {"model": str(start), "teacher": _of_start(heal.teacher, settings, point)}
    stores = {"train": str(workdir / TOKENS)}
    changes: dict[str, Any] = {"total_steps": steps}
    if settings.budget:
        # A method that makes few steps warms up in their first half at most.
        warmup = min(heal.optimizer.warmup_steps, steps // 2)
        changes["optimizer"] = dataclasses.replace(heal.optimizer, warmup_steps=warmup)
    if compares(settings):
        stores["evaluation"] = str(workdir / HELD_OUT)
        often = heal.dimchop.interval if heal.dimchop.final else 1
        every = heal.evaluation.every or _multiple(often, steps // EVALUATIONS)
        changes["evaluation"] = dataclasses.replace(heal.evaluation, every=every)
    return healing.heal_config(
        heal,
        begin,
        stores,
        seed=point.seed,
        log=dataclasses.replace(heal.log, tensorboard=False),
        **changes,
    )


def _heal_of(settings: SweepSettings, point: Point, steps: int = 0) -> HealSettings:
    """How a point heals: zeros that were made stay, and those of DimCHOP are all there half-way,
    unless `heal.dimchop` says when. steps: in place of `heal.total_steps`."""
    heal = heal_of(settings, point.method)
    asked = heal.dimchop
    if final := masked_by(point.changes):
        end = asked.end or _multiple(asked.interval, (steps or heal.total_steps) // 2)
        return dataclasses.replace(heal, dimchop=dataclasses.replace(asked, final=final, end=end))
    if not asked.final:  # when columns go is said for the strategies that have it
        heal = dataclasses.replace(heal, dimchop=DimChopSettings())
    return dataclasses.replace(heal, masks="fixed") if has_zeros(point.changes) else heal


def _multiple(of: int, steps: int) -> int:
    """The one next to a number of steps, and not 0. Of 0, which training refuses, 0."""
    return max(round(steps / max(of, 1)), 1) * of


def _from_parent(settings: SweepSettings, point: Point, heal: HealSettings) -> dict[str, Any]:
    """The start of a run that makes a point of the parent, as far as its layers go."""
    begin = healing.from_parent(settings, point.keep)
    if point.remove:
        return begin
    teacher = _of_start(heal.teacher, settings, point)
    return begin | {"chop": training.ChopSettings(), "teacher": teacher}


def _of_start(asked: TeacherSettings, settings: SweepSettings, point: Point) -> TeacherSettings:
    """The same teacher for a student that is a checkpoint of its own: the sweep's parent, whatever
    that was cut from, with the layers that the point kept."""
    if asked.model != PARENT:
        return asked
    layers = asked.map or ranges(point.keep)
    return dataclasses.replace(asked, model=settings.model, revision=settings.revision, map=layers)


def check_settings(
    settings: SweepSettings, workdir: Path, method: Method, changes: tuple[Change, ...] = ()
) -> None:
    """Raises UserError where a method's settings contradict each other, or what was changed."""
    steps = heal_of(settings, method).total_steps
    point = Point("", 1, (0,), 0, method, changes)
    try:
        training.read(config_of(settings, workdir, point, steps))
    except UserError as error:
        raise UserError(f"{method.name}: {error}") from error


def meaning(settings: SweepSettings, point: Point) -> dict[str, Any]:
    """What a point's training depends on, beside model, layers and text."""
    means = same_run.meaning(dataclasses.asdict(_heal_of(settings, point)))
    if settings.budget:
        means = {name: value for name, value in means.items() if name != "total_steps"}
        means["budget"] = parse_budget(settings.budget).named()
    return means | {"seed": point.seed}


def train_point(
    settings: SweepSettings,
    workdir: Path,
    folder: Path,
    point: Point,
    parent: ModelConfig,
    start: Path | None,
    params: Params,
    spent: Cost,
) -> dict[str, Any]:
    """Train in a folder; returns what it cost, with what was spent before (costs.py).

    start: as config_of has it; params: the same, in memory.
    """
    ((steps, step),) = steps_of(settings, workdir, parent, [(point, spent)])
    config = config_of(settings, workdir, point, steps, start)
    same = settings.score.dtype == config.compute.param_dtype
    known = same and point.method.trained != SCRATCH
    train(config, folder, params=params if known else None)
    return costs.trained(folder, step, spent)


def window_loss(
    settings: SweepSettings, workdir: Path, config: ModelConfig, params: Params
) -> float:
    """Of a model that is not trained: held-out loss as the others' training measures it."""
    stores = {"train": str(workdir / TOKENS), "evaluation": str(workdir / HELD_OUT)}
    plain = heal_settings(settings.heal, Method(trained=FULL), {})
    heal = training.read(healing.heal_config(plain, {"model": settings.model}, stores))
    mesh = meshes.make_mesh(heal.mesh.data, heal.mesh.fsdp, heal.mesh.tensor, heal.mesh.slices)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, meshes.shardings(config, mesh))
        return held_out_loss(config, placed, heal, mesh)[0]
