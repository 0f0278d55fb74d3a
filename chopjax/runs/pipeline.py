"""The whole way: parent → score → chop → score → heal → score → export.

WORKDIR/tokens/train, WORKDIR/tokens/held_out    token stores
WORKDIR/analysis                                 what layers do, where the strategy looks at it
WORKDIR/analysis-measured.json                   from which a killed or deeper search goes on
WORKDIR/chopped                                  Hugging Face checkpoint
WORKDIR/heal                                     training run, with its checkpoints
WORKDIR/healed                                   Hugging Face checkpoint with a model card
WORKDIR/rounds/N/                                the same of the rounds before the last
WORKDIR/scores/MODEL/                            lm-evaluation-harness's result files, and answers
WORKDIR/stages/                                  what is done, with which settings
WORKDIR/report.{html,json}, WORKDIR/healing.png  what came of it
WORKDIR/heal.DATE, WORKDIR/healed.DATE           set aside before they were done anew
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from chopjax.checkpoint.describe import Description, describe
from chopjax.checkpoint.packed import say_decoded
from chopjax.checkpoint.source import Checkpoint
from chopjax.data.tokenizer import load_tokenizer
from chopjax.data.work_folder import check_store, remove_store, work_folder
from chopjax.errors import UserError
from chopjax.models.config import ModelConfig
from chopjax.report.pipeline import check_report, write_report
from chopjax.runs import costs, healing, removal, work
from chopjax.runs import scored as scores
from chopjax.runs.budget import Cost, parse_budget
from chopjax.runs.inputs import WAYS, Inputs
from chopjax.runs.records import StageRecords
from chopjax.runs.rounds import Round, rounds_of
from chopjax.runs.settings import Model, PipelineSettings, parent_of, read_pipeline
from chopjax.runs.stages import Stage, fingerprints_of, look, run_all
from chopjax.runs.workdir import check_space, opened
from chopjax.train import same_run
from chopjax.train import settings as training
from chopjax.train.space import run_bytes
from chopjax.train.wandb_run import check_wandb

VERB = "run"


class Job(NamedTuple):
    """What a run is asked to do. tokenizer: its fingerprint."""

    settings: PipelineSettings
    workdir: Path
    parent: Description
    rounds: list[Round]
    scored: scores.Scored
    tokenizer: str


def run(config: ConfigDict, workdir: Path, command: str = "") -> dict[str, Any]:
    """Run what is not done yet; returns what report.json holds.

    command: how to do this again, for the report.
    Raises UserError before any work is done where the config, the parent or the texts are not
    right.
    """
    settings = read_pipeline(config)
    parent = describe(*parent_of(settings))
    if not isinstance(parent.weights, Checkpoint):
        raise UserError(
            f"model: {settings.model} is a folder of chopjax's own; give what `chopjax export` "
            "makes of it"
        )
    say_decoded(parent.weights)
    rounds = rounds_of(settings, workdir, parent.config.num_layers)
    removal.check(settings, parent.weights, rounds)
    healing.check_teacher_of(settings.heal, parent)
    check_wandb(settings.heal.log.wandb)
    scored = scores.find(settings.score)
    tokenizer = load_tokenizer(*parent_of(settings)).fingerprint
    job = Job(settings, workdir, parent, rounds, scored, tokenizer)
    with opened(workdir, VERB, check_report):  # `look` looks at the places of stages
        if settings.budget:
            job = job._replace(rounds=[_within(settings, workdir, parent.config, *rounds)])
        _check_space(job)
        ways = [_stages(job, inputs) for inputs in WAYS]
        records = StageRecords(workdir)
        results = run_all(records, look(records, ways[0], fingerprints_of(*ways)))
        costed = costs.CONVENTIONS if settings.budget else {}
        return write_report(workdir, dataclasses.asdict(settings), results, command, costed)


def _within(settings: PipelineSettings, workdir: Path, parent: ModelConfig, each: Round) -> Round:
    """The round with about the steps that the budget makes; it is exact once the chop is there."""
    before, repair = Cost(), settings.chop.repair
    if each.keep and repair and not parse_budget(settings.budget).is_time:
        before = costs.repair_at_most(settings.calibration, parent, each.keep, repair)
    # Layers that a measure will choose cost what others cost.
    keep = each.keep or tuple(range(parent.num_layers - each.remove))
    return each._replace(steps=healing.steps_of(settings, workdir, keep, before)[0])


def _check_space(job: Job) -> None:
    """Counted are a chopped and a healed model of every round, and the checkpoints of its
    healing."""
    assert isinstance(job.parent.weights, Checkpoint)
    size = sum(tensor.nbytes for tensor in job.parent.weights.tensors.values())
    total = left = job.parent.config.num_layers
    models = 0
    for each in job.rounds:
        left -= each.remove
        heal = training.read(healing.of_round(job.settings, job.workdir, each))
        kept = job.parent.config.keep(range(left))
        models += 2 * size * left // total + run_bytes(kept, heal)
    text = job.settings.text
    check_space(job.workdir, [text.train, text.held_out], text.field, models)


# ------------------------------------------------------------------------------------ Stages


def _stages(job: Job, inputs: Inputs) -> list[Stage]:
    settings, last = job.settings, job.rounds[-1]
    parent = parent_of(settings)
    chopped, healed = Model(str(last.chopped)), Model(str(last.healed))
    origin = inputs.model(job.parent)
    held_out = inputs.texts(settings.text.held_out, settings.text.field)
    models = {"parent": parent, "chopped": chopped, "healed": healed}

    def score(name: str, needs: tuple[str, ...]) -> list[Stage]:
        """Document loss, then tasks and texts: what was measured there stays when some are added,
        and goes when the model or what all figures depend on changes."""
        out, about = job.workdir / "scores" / name, scores.about(settings.score)
        source = {} if needs else origin
        reading = {key: about[key] for key in ("dtype", "max_length")}
        return [
            Stage(
                name=f"score-{name}",
                settings=reading | {"held_out": held_out} | source,
                needs=needs,
                run=lambda: work.score(settings, models[name]),
            ),
            Stage(
                name=f"tasks-{name}",
                settings=about | job.scored.identities | source,
                needs=needs,
                # Answers are found again by model and request.
                run=lambda: work.score_on(settings, job.scored, models[name], out),
                places=(out,),
            ),
        ]

    def windows(name: str, of: tuple[str, ...], needs: tuple[str, ...]) -> Stage:
        config = healing.of_round(settings, job.workdir, last)
        parts = {part: config.to_dict()[part] for part in ("evaluation", "data", "compute")}
        return Stage(
            name=name,
            settings={"heal": inputs.training(same_run.flat(parts))},
            needs=("tokens-held_out", *needs),
            run=lambda: work.window_losses(config, {model: models[model] for model in of}),
        )

    remove = functools.partial(removal.stages, settings, inputs, origin)
    heal = functools.partial(healing.stages, settings, job.workdir, inputs)
    return [
        *score("parent", ()),
        _tokens(job, inputs, "train"),
        _tokens(job, inputs, "held_out"),
        *(stage for each in job.rounds[:-1] for stage in (*remove(each), *heal(each))),
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
            run=lambda: work.latency(settings.score, models),
        ),
    ]


def _tokens(job: Job, inputs: Inputs, part: str) -> Stage:
    out, text = job.workdir / "tokens" / part, getattr(job.settings.text, part)
    return Stage(
        name=f"tokens-{part}",
        settings={"text": inputs.texts(text, job.settings.text.field), "tokenizer": job.tokenizer},
        outputs=(out,),
        places=(work_folder(out),),
        needs=(),
        run=lambda: work.prepare_text(job.settings, text, out),
        check=lambda: check_store(out),
        clean=lambda: remove_store(out),
    )
