"""The whole way: parent → score → chop → score → heal → score → export.

WORKDIR/tokens/train, WORKDIR/tokens/held_out    token stores
WORKDIR/analysis                                 what layers do, where the strategy looks at it
WORKDIR/chopped                                  Hugging Face checkpoint
WORKDIR/heal                                     training run, with its checkpoints
WORKDIR/healed                                   Hugging Face checkpoint with a model card
WORKDIR/rounds/N/{analysis,chopped,heal,healed}  the same of the rounds before the last
WORKDIR/scores/MODEL/                            lm-evaluation-harness's result files, and answers
WORKDIR/stages/                                  what is done, with which settings
WORKDIR/report.{html,json}, WORKDIR/healing.png  what came of it
WORKDIR/heal.DATE, WORKDIR/healed.DATE           set aside before they were done anew
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from chopjax import pipeline_work as work
from chopjax import scored as scores
from chopjax.checkpoint.atomic import check_free, set_aside
from chopjax.checkpoint.describe import Description, describe
from chopjax.checkpoint.mark import begin_mark, check_mark, is_taken, marked_by
from chopjax.checkpoint.source import Checkpoint
from chopjax.choice import LOOKS, by_list, by_name, measure_of
from chopjax.chop.configurations import Keep, resolve_remove
from chopjax.chop.importance import check_count, parse_protect
from chopjax.chop.schedule import parse_schedule, shares, split_keep
from chopjax.data.lists import text_names
from chopjax.data.sources import find_sources
from chopjax.data.tokenizer import load_tokenizer
from chopjax.data.work_folder import check_store, remove_store, work_folder
from chopjax.errors import UserError
from chopjax.inputs import Contents, Inputs, Stamps
from chopjax.pipeline_settings import PipelineSettings, read
from chopjax.report.pipeline import check_report, write_report
from chopjax.room import check_pipeline
from chopjax.stages import Stage, run_stages
from chopjax.train import settings as training
from chopjax.train.loop import train
from chopjax.train.own_files import check_run
from chopjax.train.wandb_run import check_wandb
from chopjax.train.workdir import owned

VERB = "run"


def run(config: ConfigDict, workdir: Path, command: str = "") -> dict[str, Any]:
    """Run what is not done yet; returns what report.json holds.

    command: how to do this again, for the report.
    Raises UserError before any work is done where the config, the parent or the texts are not
    right.
    """
    settings = read(config)
    parent = describe(settings.model, settings.revision or None)
    if not isinstance(parent.weights, Checkpoint):
        raise UserError(
            f"model: {settings.model} is a folder of chopjax's own; give what `chopjax export` "
            "makes of it"
        )
    rounds = _rounds(settings, workdir, parent.config.num_layers)
    check_wandb(settings.heal.log.wandb)
    scored = scores.find(settings.score)
    with owned(workdir, check_workdir):
        if marked_by(workdir) is None:
            begin_mark(workdir, VERB)
        _check_room(settings, workdir, parent, rounds)
        fingerprint = load_tokenizer(settings.model, settings.revision or None).fingerprint
        stages, older = (
            _stages(settings, workdir, parent, rounds, inputs, fingerprint, scored)
            for inputs in (Contents(), Stamps())
        )
        results = run_stages(workdir, stages, older)
        return write_report(workdir, dataclasses.asdict(settings), results, command)


def check_workdir(workdir: Path) -> None:
    """Raise UserError where the folder is another verb's, or a report of somebody else's is there.
    Folders in the places of stages are looked at by run_stages."""
    check_mark(workdir)
    if marked_by(workdir) not in (None, VERB):
        raise UserError(
            f"{workdir} is a folder of `chopjax {marked_by(workdir)}`; give another --workdir"
        )
    check_report(workdir)


def _check_room(
    settings: PipelineSettings, workdir: Path, parent: Description, rounds: Sequence[Round]
) -> None:
    assert isinstance(parent.weights, Checkpoint)
    total, left, models = parent.config.num_layers, parent.config.num_layers, []
    for each in rounds:
        left -= each.remove
        heal = training.read(_heal_config(settings, workdir, each))
        models.append((parent.config.with_layers(left), heal))
    size = sum(tensor.nbytes for tensor in parent.weights.tensors.values())
    texts = [
        file
        for text in (settings.text.train, settings.text.held_out)
        for source in find_sources(text_names(text), settings.text.field)
        for file in source.files
    ]
    check_pipeline(workdir, total, size, models, texts)


# ------------------------------------------------------------------------------------ Rounds


class Round(NamedTuple):
    """One removal of layers and the healing after it.

    number: from 1. suffix: of its stages' names; empty for the last round. model: what it chops.
    after: the stage that makes that model; empty for the parent. remove: how many layers go. keep:
    those that stay, in that model's numbering; None where what layers do will tell.
    """

    number: int
    suffix: str
    model: str
    after: str
    folder: Path
    remove: int
    keep: Keep | None
    steps: int  # of healing

    @property
    def analysis(self) -> Path:
        return self.folder / "analysis"

    @property
    def chopped(self) -> Path:
        return self.folder / "chopped"

    @property
    def heal(self) -> Path:
        return self.folder / "heal"

    @property
    def healed(self) -> Path:
        return self.folder / "healed"


def _rounds(settings: PipelineSettings, workdir: Path, num_layers: int) -> list[Round]:
    """What goes when. Raises UserError where so many layers cannot go."""
    chop, schedule = settings.chop, parse_schedule(settings.chop.schedule)
    keeps: Sequence[Keep | None]
    if chop.keep or chop.strategy not in LOOKS:
        chosen = (
            by_list(chop.keep, num_layers)
            if chop.keep
            else by_name(chop.strategy, chop.remove, num_layers)
        )
        keeps = split_keep(chosen.keep, num_layers, schedule.rounds)
        counts = shares(num_layers - len(chosen.keep), schedule.rounds)
    else:
        remove = resolve_remove(chop.remove, num_layers)
        check_count(chop.strategy, num_layers, remove, parse_protect(chop.protect))
        counts = shares(remove, schedule.rounds)
        keeps = [None] * schedule.rounds
    found: list[Round] = []
    for number, (count, keep) in enumerate(zip(counts, keeps, strict=True), 1):
        last = number == schedule.rounds
        found.append(
            Round(
                number=number,
                suffix="" if last else f"-{number}",
                model=str(found[-1].healed) if found else settings.model,
                after=f"export{found[-1].suffix}" if found else "",
                folder=workdir if last else workdir / "rounds" / str(number),
                remove=count,
                keep=keep,
                steps=settings.heal.total_steps if last else schedule.steps,
            )
        )
    return found


# ------------------------------------------------------------------------------------ Stages


def _stages(
    settings: PipelineSettings,
    workdir: Path,
    parent: Description,
    rounds: Sequence[Round],
    inputs: Inputs,
    fingerprint: str,
    scored: scores.Scored,
) -> list[Stage]:
    """fingerprint: of the tokenizer."""
    last = rounds[-1]
    folders = dict(
        zip(work.MODELS, (settings.model, str(last.chopped), str(last.healed)), strict=True)
    )
    healing = _heal_config(settings, workdir, last)
    for each in rounds:
        training.read(_heal_config(settings, workdir, each))
    origin = inputs.model(parent)
    texts = {
        part: inputs.texts(getattr(settings.text, part), settings.text.field)
        for part in ("train", "held_out")
    }

    def tokens(part: str) -> Stage:
        out = workdir / "tokens" / part
        return Stage(
            name=f"tokens-{part}",
            settings={"text": texts[part], "tokenizer": fingerprint},
            outputs=(out,),
            places=(work_folder(out),),
            needs=(),
            run=lambda: work.prepare_text(settings, getattr(settings.text, part), out),
            check=lambda: check_store(out),
            clean=lambda: remove_store(out),
        )

    def score(name: str, needs: tuple[str, ...]) -> list[Stage]:
        """Document loss, then tasks and texts: what was measured there stays when some are added,
        and goes when the model or what all figures depend on changes."""
        out, about = workdir / "scores" / name, scores.about(settings.score)
        source = {} if needs else origin
        reading = {key: about[key] for key in ("dtype", "max_length")}
        return [
            Stage(
                name=f"score-{name}",
                settings=reading | {"held_out": texts["held_out"]} | source,
                needs=needs,
                run=lambda: work.score(settings, name, folders[name]),
            ),
            Stage(
                name=f"tasks-{name}",
                settings=about | scored.identities | source,
                needs=needs,
                # Answers are found again by model and request.
                run=lambda: work.score_on(settings, scored, name, folders[name], out),
                places=(out,),
            ),
        ]

    def windows(name: str, models: tuple[str, ...], needs: tuple[str, ...]) -> Stage:
        return Stage(
            name=name,
            settings={"heal": inputs.training(training.flat(_evaluation_settings(healing)))},
            needs=("tokens-held_out", *needs),
            run=lambda: work.window_losses(settings, healing, {m: folders[m] for m in models}),
        )

    remove = functools.partial(_removal, settings, inputs, origin)
    heal = functools.partial(_healing, settings, workdir, inputs)
    return [
        *score("parent", ()),
        tokens("train"),
        tokens("held_out"),
        *(stage for each in rounds[:-1] for stage in (*remove(each), *heal(each))),
        *remove(last),
        *score("chopped", ("chop",)),
        windows("held-out-loss", ("parent", "chopped"), ("chop", "score-parent")),
        *heal(last),
        windows("held-out-loss-healed", ("healed",), ("export",)),
        *score("healed", ("export",)),
        Stage(
            name="latency",
            settings={
                "batch": settings.score.latency_batch,
                "length": settings.score.latency_length,
                "dtype": settings.score.dtype,
                "device": work.device(),
            },
            needs=("chop", "export", "score-parent"),
            run=lambda: work.latency(settings, folders),
        ),
    ]


def _removal(
    settings: PipelineSettings, inputs: Inputs, origin: dict[str, Any], each: Round
) -> list[Stage]:
    """Measure where the strategy wants it, then chop."""
    chop, calibration = settings.chop, dataclasses.asdict(settings.calibration)
    source = {} if each.after else origin
    needs = (each.after,) if each.after else ()
    text = settings.calibration.text or settings.text.train
    looked_at = calibration | {
        "text": inputs.texts(text, settings.text.field) if each.keep is None else [],
        "protect": chop.protect,
    }
    measures = each.keep is None and chop.strategy != "laco"
    about: dict[str, Any] = {"remove": each.remove}
    about |= {"keep": list(each.keep)} if each.keep is not None else {"protect": chop.protect}
    about |= looked_at if each.keep is None and not measures else {}
    stages = [
        Stage(
            name=f"chop{each.suffix}",
            settings=source | about | {"strategy": "keep" if chop.keep else chop.strategy},
            needs=(f"measure{each.suffix}",) if measures else needs,
            run=lambda: work.chop(settings, each),
            check=lambda: check_free(each.chopped, "chop", overwrite=True),
            outputs=(each.chopped,),
        )
    ]
    if measures:
        measure = Stage(
            name=f"measure{each.suffix}",
            settings=source | looked_at | {"measure": measure_of(chop.strategy)},
            needs=needs,
            run=lambda: work.measure(settings, each),
            check=lambda: check_free(each.analysis, "analyze", overwrite=True),
            outputs=(each.analysis,),
        )
        stages.insert(0, measure)
    return stages


def _healing(settings: PipelineSettings, workdir: Path, inputs: Inputs, each: Round) -> list[Stage]:
    """What was trained is never deleted; it is set aside."""
    return [
        Stage(
            name=f"heal{each.suffix}",
            settings=inputs.training(_meaning(_heal_config(settings, workdir, each))),
            needs=(f"chop{each.suffix}", "tokens-train"),
            run=lambda: train(_heal_config(settings, workdir, each, work.kept(each)), each.heal),
            check=lambda: check_run(each.heal),
            clean=lambda: _set_aside(each.heal),
            outputs=(each.heal,),
        ),
        Stage(
            name=f"export{each.suffix}",
            settings={},
            needs=(f"heal{each.suffix}",),
            run=lambda: work.export(each.heal, each.healed),
            check=lambda: check_free(each.healed, "export", overwrite=True),
            clean=lambda: _set_aside(each.healed),
            outputs=(each.healed,),
        ),
    ]


# --------------------------------------------------------------------- What results depend on


def _heal_config(
    settings: PipelineSettings, workdir: Path, each: Round, keep: Keep | None = None
) -> ConfigDict:
    """A round's training run. Where the parent trains before the chop, the run starts from the
    parent and chops itself; else it starts from the chopped checkpoint.

    keep: as it came out, where a measure chose it.
    """
    heal = settings.heal
    stores = {part: str(workdir / "tokens" / part) for part in ("train", "held_out")}
    # A short round warms up in its first half at most; the last one does what the recipe says.
    warmup = heal.optimizer.warmup_steps
    warmup = min(warmup, each.steps // 2) if each.suffix else warmup
    heal = dataclasses.replace(
        heal,
        model=str(each.chopped),
        data=dataclasses.replace(heal.data, train=stores["train"], evaluation=stores["held_out"]),
        total_steps=each.steps,
        # Every round sees the text in an order of its own.
        seed=heal.seed + (each.number if each.suffix else 0),
        optimizer=dataclasses.replace(heal.optimizer, warmup_steps=warmup),
    )
    if settings.chop.after_steps:
        text = ",".join(map(str, keep or each.keep or (0,)))
        chop = training.ChopSettings(keep=text, after_steps=settings.chop.after_steps)
        heal = dataclasses.replace(
            heal, model=settings.model, revision=settings.revision, chop=chop
        )
    return ConfigDict(dataclasses.asdict(heal), convert_dict=True)


def _meaning(healing: ConfigDict) -> dict[str, Any]:
    """The settings that change what a training run means; the others may change on resuming."""
    return {
        name: value
        for name, value in training.flat(healing.to_dict()).items()
        if not name.startswith(training.MAY_CHANGE)
    }


def _evaluation_settings(healing: ConfigDict) -> dict[str, Any]:
    return {name: healing.to_dict()[name] for name in ("evaluation", "data", "compute")}


def _set_aside(folder: Path) -> None:
    if is_taken(folder):
        set_aside(folder)
