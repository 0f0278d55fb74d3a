"""How chopped models heal: the training run, in a pipeline's rounds and at a sweep's points."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from chopjax.checkpoint.describe import Description, describe
from chopjax.checkpoint.export import export_model
from chopjax.disk.atomic import check_free, set_aside
from chopjax.disk.mark import is_taken, some
from chopjax.keep import Keep
from chopjax.progress import say
from chopjax.runs import costs
from chopjax.runs.budget import Cost, Plan, parse_budget, steps_within
from chopjax.runs.inputs import Inputs
from chopjax.runs.removal import chop_settings, kept
from chopjax.runs.rounds import Round
from chopjax.runs.settings import AnySettings, PipelineSettings, parent_of
from chopjax.runs.stages import Stage
from chopjax.train import same_run
from chopjax.train import settings as training
from chopjax.train.loop import train
from chopjax.train.own_files import check_run, foreign_files
from chopjax.train.settings import PARENT, LogSettings
from chopjax.train.settings import Settings as HealSettings
from chopjax.train.teacher import check_teacher


def heal_config(
    heal: HealSettings, start: Mapping[str, Any], stores: Mapping[str, Any], **changes: Any
) -> ConfigDict:
    """The training run that heals. start: of its settings, the model that it begins with; stores:
    of `data`; changes: what else differs from `heal`."""
    data = dataclasses.replace(heal.data, **stores)
    heal = dataclasses.replace(heal, data=data, **start, **changes)
    return ConfigDict(dataclasses.asdict(heal), convert_dict=True)


def from_parent(settings: AnySettings, keep: Keep, after_steps: int = 0) -> dict[str, Any]:
    """The start of a run that chops the parent itself."""
    chop = training.ChopSettings(keep=",".join(map(str, keep)), after_steps=after_steps)
    return {"model": settings.model, "revision": settings.revision, "chop": chop}


def check_teacher_of(heal: HealSettings, parent: Description) -> None:
    """Raise UserError where a teacher other than the parent cannot teach what is cut from it; what
    it takes to lay layers beside each other is known when there is a chop."""
    asked = heal.teacher
    if asked.model not in ("", PARENT):
        found = describe(asked.model, asked.revision or None)
        check_teacher(found, parent.config, parent.folder, heal)


def remove_run(folder: Path, log: LogSettings) -> None:
    """Delete a training run whose model is scored, unless its folder holds what others wrote."""
    if not folder.is_dir():
        return
    if others := foreign_files(folder, bool(log.wandb), bool(log.profile)):
        say(f"{folder} stays: it holds what is not known to be the run's: {some(others)}")
    else:
        shutil.rmtree(folder)


# ------------------------------------------------------------------------------ In rounds


def of_round(
    settings: PipelineSettings, workdir: Path, each: Round, keep: Keep | None = None
) -> ConfigDict:
    """A round's training run. Where the parent trains before the chop, the run starts from the
    parent and chops itself; else it starts from the chopped checkpoint.

    keep: as it came out, where a measure chose it.
    """
    heal, after_steps, tokens = settings.heal, settings.chop.after_steps, workdir / "tokens"
    # A short round warms up in its first half at most, and so does what a budget cuts short; else
    # the last one does what the recipe says.
    warmup = heal.optimizer.warmup_steps
    warmup = min(warmup, each.steps // 2) if each.suffix or settings.budget else warmup
    start: dict[str, Any] = {"model": str(each.chopped)}
    if after_steps:
        start = from_parent(settings, keep or each.keep or (0,), after_steps)
    return heal_config(
        heal,
        start,
        {"train": str(tokens / "train"), "evaluation": str(tokens / "held_out")},
        total_steps=each.steps,
        # Every round sees the text in an order of its own.
        seed=heal.seed + (each.number if each.suffix else 0),
        optimizer=dataclasses.replace(heal.optimizer, warmup_steps=warmup),
    )


def stages(settings: PipelineSettings, workdir: Path, inputs: Inputs, each: Round) -> list[Stage]:
    """What was trained is never deleted; it is set aside."""
    means = inputs.training(same_run.meaning(of_round(settings, workdir, each).to_dict()))
    if settings.budget:  # it decides how many steps there are, and how long they warm up
        means = {name: value for name, value in means.items() if name != "total_steps"}
        means["budget"] = parse_budget(settings.budget).named()
        means["optimizer.warmup_steps"] = settings.heal.optimizer.warmup_steps
    return [
        Stage(
            name=f"heal{each.suffix}",
            settings=means | inputs.teacher(settings.heal.teacher),
            needs=(f"chop{each.suffix}", "tokens-train"),
            run=lambda: _heal(settings, workdir, each),
            check=lambda: check_run(each.heal),
            clean=lambda: _set_aside(each.heal),
            outputs=(each.heal,),
        ),
        Stage(
            name=f"export{each.suffix}",
            settings={},
            needs=(f"heal{each.suffix}",),
            run=lambda: _export(each),
            check=lambda: check_free(each.healed, "export", overwrite=True),
            clean=lambda: _set_aside(each.healed),
            outputs=(each.healed,),
        ),
    ]


def steps_of(
    settings: PipelineSettings, workdir: Path, keep: Keep, before: Cost
) -> tuple[int, Cost]:
    """How many steps the budget makes of a chop, and what one costs; before: what the first one
    waits for. Raises UserError where it makes none."""
    budget, model = parse_budget(settings.budget), describe(*parent_of(settings)).config.keep(keep)
    heal = dataclasses.replace(settings.heal, **from_parent(settings, keep))
    step = costs.step_cost(workdir, model, heal, budget.is_time)
    (steps,) = steps_within(budget, [Plan("healing", step, before)])
    return steps, step


def _heal(settings: PipelineSettings, workdir: Path, each: Round) -> dict[str, Any]:
    keep = kept(each)
    if not settings.budget:
        return train(of_round(settings, workdir, each, keep), each.heal)
    before = Cost()
    if about := chop_settings(each).get("repair"):
        before = costs.repair_cost(describe(*parent_of(settings)).config, keep, about)
    steps, step = steps_of(settings, workdir, keep, before)
    summary = train(of_round(settings, workdir, each._replace(steps=steps), keep), each.heal)
    return summary | {"cost": costs.trained(each.heal, step, before)}


def _export(each: Round) -> dict[str, Any]:
    export_model(str(each.heal), each.healed, overwrite=True)
    return {"folder": str(each.healed)}


def _set_aside(folder: Path) -> None:
    if is_taken(folder):
        set_aside(folder)
