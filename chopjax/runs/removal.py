"""How the layers of a round of `chopjax run` go: what the strategy measures, and the chop."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chopjax.checkpoint.describe import describe
from chopjax.checkpoint.provenance import CHOP, entries, read_provenance
from chopjax.checkpoint.source import Checkpoint
from chopjax.chop import choice
from chopjax.chop.analysis import AnalysisSettings, write_analysis
from chopjax.chop.fold_place import check_gaps, gaps_of
from chopjax.chop.folds import Folds
from chopjax.chop.importance import ANALYSIS, parse_protect
from chopjax.chop.repair import repair
from chopjax.chop.repair_check import check_family
from chopjax.chop.stream import chop_checkpoint
from chopjax.data.lists import text_names
from chopjax.disk.atomic import check_free
from chopjax.disk.files import read_json_object
from chopjax.errors import UserError
from chopjax.keep import Keep, ranges
from chopjax.progress import say
from chopjax.report.layers import save_all
from chopjax.runs.inputs import Inputs
from chopjax.runs.rounds import Round
from chopjax.runs.schedule import ONCE, parse_schedule
from chopjax.runs.settings import PipelineSettings, calibration_text
from chopjax.runs.stages import Stage
from chopjax.runs.work import analysis, analysis_settings, repair_settings


def stages(
    settings: PipelineSettings, inputs: Inputs, origin: dict[str, Any], each: Round
) -> list[Stage]:
    """Measure where the strategy wants it, then chop. origin: what tells the parent apart."""
    wanted, suffix = settings.chop, each.suffix
    about: dict[str, Any] = {} if each.after else origin
    needs = (each.after,) if each.after else ()
    stages = []
    strategy = {"remove": each.remove, "strategy": "keep" if wanted.keep else wanted.strategy}
    looked_at: dict[str, Any] = {}
    if each.keep is None or wanted.repair:
        text = inputs.texts(calibration_text(settings), settings.text.field)
        looked_at = dataclasses.asdict(settings.calibration) | {"text": text}
    if each.keep is not None:
        chosen = about | strategy | {"keep": list(each.keep)}
    else:
        seen = looked_at | about | {"protect": wanted.protect}
        if wanted.strategy == "laco":  # looks while it chops
            chosen = seen | strategy
        else:
            chosen = about | strategy | {"protect": wanted.protect}
            stages.append(
                Stage(
                    name=f"measure{suffix}",
                    settings=seen | {"measure": choice.measure_of(wanted.strategy)},
                    needs=needs,
                    run=lambda: measure(settings, each),
                    check=lambda: check_free(each.analysis, "analyze", overwrite=True),
                    outputs=(each.analysis,),
                    lacks=lambda: _lacks(settings, each),
                    places=(_journal(each),),
                )
            )
            needs = (f"measure{suffix}",)
    if wanted.repair:  # a key only then, so that what is done without stays done
        chosen |= looked_at | {"repair": wanted.repair, "ridge": wanted.ridge}
        chosen |= {"seed": settings.heal.seed}
    chopping = Stage(
        name=f"chop{suffix}",
        settings=chosen,
        needs=needs,
        run=lambda: chop(settings, each),
        check=lambda: check_free(each.chopped, "chop", overwrite=True),
        outputs=(each.chopped,),
    )
    return [*stages, chopping]


def measure(settings: PipelineSettings, each: Round) -> dict[str, Any]:
    """What the strategy needs to know of the layers of a round's model, in the round's folder."""
    about = _analysis_settings(settings, (choice.measure_of(settings.chop.strategy),))
    about = dataclasses.replace(
        about, rounds=choice.sleb_rounds(settings.chop.strategy, each.remove)
    )
    measured = analysis(settings, each.model, about, _journal(each))
    write_analysis(each.analysis, measured, save_all, overwrite=True)
    return {"tokens": measured["tokens"]}


def _journal(each: Round) -> Path:
    """What a round's analysis has measured so far."""
    return each.analysis.with_name(f"{each.analysis.name}-measured.json")


def _lacks(settings: PipelineSettings, each: Round) -> str:
    """What a round's analysis has too few of for as many layers as are to go now."""
    wanted = choice.sleb_rounds(settings.chop.strategy, each.remove)
    if not wanted:
        return ""
    try:
        rounds = len(read_json_object(each.analysis / ANALYSIS)["measures"]["sleb"])
    except (UserError, KeyError, TypeError):
        return ""  # the chop says so if it needs it
    return "rounds of sleb" if rounds < wanted else ""


def chop(settings: PipelineSettings, each: Round) -> dict[str, Any]:
    """Remove a round's layers. kept_layers: of the parent, after this round."""
    checkpoint = describe(*each.model).weights
    assert isinstance(checkpoint, Checkpoint)
    chosen, total = _choice(settings, each, checkpoint), checkpoint.config.num_layers
    say(f"keeping layers {ranges(chosen.keep)} of {total}")
    about = chosen.settings
    if parse_schedule(settings.chop.schedule) != ONCE:
        about = about | {"schedule": settings.chop.schedule, "round": each.number}
    folds = _folds(settings, each, chosen)
    plan = chop_checkpoint(
        checkpoint, chosen.keep, each.chopped, chosen.strategy, about, overwrite=True,
        recipe=chosen.recipe, folds=folds,
    )  # fmt: skip
    result = {"kept_layers": list(_of_parent(each)), "bytes": plan.after.bytes}
    return result | ({"repair": dict(folds.about)} if folds else {})


def check(settings: PipelineSettings, parent: Checkpoint, rounds: Sequence[Round]) -> None:
    """Raises UserError where the chops could not be repaired, as far as it is known before they
    are made."""
    if kind := settings.chop.repair:
        check_family(parent, kind)
        num_layers = parent.config.num_layers
        for each in rounds:
            if each.keep is not None and each.remove:
                check_gaps(kind, gaps_of(each.keep, num_layers))
            num_layers -= each.remove


def _folds(settings: PipelineSettings, each: Round, chosen: choice.Choice) -> Folds | None:
    """What a repair puts in place of some weights; None where none is asked for."""
    if not settings.chop.repair or not each.remove:
        return None
    about = repair_settings(settings, settings.chop.repair, settings.chop.ridge, settings.heal.seed)
    text, field = text_names(calibration_text(settings)), settings.text.field
    return repair(*each.model, text, chosen.keep, chosen.recipe, about, field)


def _choice(settings: PipelineSettings, each: Round, checkpoint: Checkpoint) -> choice.Choice:
    wanted = settings.chop
    if each.keep is not None:
        if wanted.keep:
            return choice.Choice("keep", {"keep": wanted.keep}, each.keep)
        return choice.Choice(wanted.strategy, {"remove": wanted.remove}, each.keep)
    if wanted.strategy == "laco":
        text, field = text_names(calibration_text(settings)), settings.text.field
        about = _analysis_settings(settings, ())
        return choice.by_laco(*each.model, text, each.remove, about, field)
    protect = parse_protect(wanted.protect)
    return choice.by_analysis_in(each.analysis, checkpoint, wanted.strategy, each.remove, protect)


def _analysis_settings(settings: PipelineSettings, measures: tuple[str, ...]) -> AnalysisSettings:
    return analysis_settings(settings, measures, settings.chop.protect, settings.heal.seed)


def kept(each: Round) -> Keep:
    """The layers that a round's chop kept, numbered as the model that it chopped."""
    return tuple(_history(each)[-1]["kept_layers"])


def chop_settings(each: Round) -> dict[str, Any]:
    """Of a round's chop, as its chopjax.json has them: of a repair, too."""
    settings: dict[str, Any] = _history(each)[-1]["settings"]
    return settings


def _of_parent(each: Round) -> Keep:
    """The same, numbered as the pipeline's parent."""
    first, *later = (tuple(chop["kept_layers"]) for chop in _history(each)[-each.number :])
    for keep in later:
        first = tuple(first[place] for place in keep)
    return first


def _history(each: Round) -> list[dict[str, Any]]:
    """The chops of the model that a round made, the round's own last."""
    record = read_provenance(each.chopped)
    if record is None:
        raise UserError(
            f"{each.chopped} has lost its chopjax.json; delete the folder to have it chopped again"
        )
    return entries(record, CHOP)
