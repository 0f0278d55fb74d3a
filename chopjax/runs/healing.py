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
from chopjax.runs.inputs import Inputs
from chopjax.runs.removal import kept
from chopjax.runs.rounds import Round
from chopjax.runs.settings import AnySettings, PipelineSettings
from chopjax.runs.stages import Stage
from chopjax.train import settings as training
from chopjax.train.loop import train
from chopjax.train.own_files import check_run, foreign_files
from chopjax.train.settings import PARENT, LogSettings
from chopjax.train.teacher import check_teacher


def heal_config(
    settings: AnySettings, start: Mapping[str, Any], stores: Mapping[str, Any], **changes: Any
) -> ConfigDict:
    """The training run that heals. start: of its settings, the model that it begins with; stores:
    of `data`; changes: what else differs from `heal`."""
    data = dataclasses.replace(settings.heal.data, **stores)
    heal = dataclasses.replace(settings.heal, data=data, **start, **changes)
    return ConfigDict(dataclasses.asdict(heal), convert_dict=True)


def from_parent(settings: AnySettings, keep: Keep, after_steps: int = 0) -> dict[str, Any]:
    """The start of a run that chops the parent itself."""
    chop = training.ChopSettings(keep=",".join(map(str, keep)), after_steps=after_steps)
    return {"model": settings.model, "revision": settings.revision, "chop": chop}


def check_teacher_of(settings: AnySettings, parent: Description) -> None:
    """Raise UserError where a teacher other than the parent cannot teach what is cut from it; what
    it takes to lay layers beside each other is known when there is a chop."""
    asked = settings.heal.teacher
    if asked.model not in ("", PARENT):
        found = describe(asked.model, asked.revision or None)
        check_teacher(found, parent.config, parent.folder, settings.heal)


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
    # A short round warms up in its first half at most; the last one does what the recipe says.
    warmup = heal.optimizer.warmup_steps
    warmup = min(warmup, each.steps // 2) if each.suffix else warmup
    start: dict[str, Any] = {"model": str(each.chopped)}
    if after_steps:
        start = from_parent(settings, keep or each.keep or (0,), after_steps)
    return heal_config(
        settings,
        start,
        {"train": str(tokens / "train"), "evaluation": str(tokens / "held_out")},
        total_steps=each.steps,
        # Every round sees the text in an order of its own.
        seed=heal.seed + (each.number if each.suffix else 0),
        optimizer=dataclasses.replace(heal.optimizer, warmup_steps=warmup),
    )


def stages(settings: PipelineSettings, workdir: Path, inputs: Inputs, each: Round) -> list[Stage]:
    """What was trained is never deleted; it is set aside."""
    config = of_round(settings, workdir, each).to_dict()
    return [
        Stage(
            name=f"heal{each.suffix}",
            settings=inputs.training(training.meaning(config))
            | inputs.teacher(settings.heal.teacher),
            needs=(f"chop{each.suffix}", "tokens-train"),
            run=lambda: train(of_round(settings, workdir, each, kept(each)), each.heal),
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


def _export(each: Round) -> dict[str, Any]:
    export_model(str(each.heal), each.healed, overwrite=True)
    return {"folder": str(each.healed)}


def _set_aside(folder: Path) -> None:
    if is_taken(folder):
        set_aside(folder)
