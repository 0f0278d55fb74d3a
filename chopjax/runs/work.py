"""What the stages of `chopjax run` do, each returning what its record holds, a JSON object; and
what a sweep's points have in common with them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from chopjax.checkpoint.describe import describe
from chopjax.checkpoint.export import export_model
from chopjax.checkpoint.load import Loaded, load
from chopjax.checkpoint.provenance import CHOP, entries, read_provenance
from chopjax.checkpoint.source import Checkpoint
from chopjax.chop import choice
from chopjax.chop.analysis import AnalysisSettings, analyze, write_analysis
from chopjax.chop.importance import parse_protect
from chopjax.chop.stream import chop_checkpoint
from chopjax.data.lists import text_names
from chopjax.data.prepare import prepare
from chopjax.data.tokenizer import load_tokenizer
from chopjax.errors import UserError
from chopjax.keep import Keep, ranges
from chopjax.latency import measure as timing
from chopjax.models import mesh as meshes
from chopjax.models import parameters
from chopjax.models.compute import Compute
from chopjax.progress import progress, say
from chopjax.report.layers import save_all
from chopjax.runs import scored as scores
from chopjax.runs.rounds import Round
from chopjax.runs.schedule import ONCE, parse_schedule
from chopjax.runs.settings import (
    AnySettings,
    CalibrationSettings,
    PipelineSettings,
    calibration_text,
)
from chopjax.score.engine import Engine
from chopjax.score.model import open_engine
from chopjax.score.perplexity import perplexity, read_texts
from chopjax.train import settings as training
from chopjax.train.evaluation import held_out_loss
from chopjax.train.settings import Settings as HealSettings

LATENCY_LENGTH = 512  # tokens at most, where the settings leave it open


def prepare_text(settings: AnySettings, inputs: str, out: Path) -> dict[str, Any]:
    store = prepare(
        text_names(inputs),
        load_tokenizer(settings.model, settings.revision or None),
        out,
        field=settings.text.field,
        workers=settings.text.workers,
    )[""]
    return {"tokens": store.num_tokens, "documents": store.num_documents}


def measure(settings: PipelineSettings, each: Round) -> dict[str, Any]:
    """What the strategy needs to know of the layers of a round's model, in the round's folder."""
    about = _analysis_settings(settings, (choice.measure_of(settings.chop.strategy),))
    text, field = text_names(calibration_text(settings)), settings.text.field
    analysis = analyze(each.model, text, about, _round_revision(settings, each), field)
    write_analysis(each.analysis, analysis, save_all, overwrite=True)
    return {"tokens": analysis["tokens"]}


def chop(settings: PipelineSettings, each: Round) -> dict[str, Any]:
    """Remove a round's layers. kept_layers: of the parent, after this round."""
    revision = _round_revision(settings, each)
    checkpoint = describe(each.model, revision).weights
    assert isinstance(checkpoint, Checkpoint)
    chosen, total = _choice(settings, each, checkpoint), checkpoint.config.num_layers
    say(f"keeping layers {ranges(chosen.keep)} of {total}")
    about = chosen.settings
    if parse_schedule(settings.chop.schedule) != ONCE:
        about = about | {"schedule": settings.chop.schedule, "round": each.number}
    plan = chop_checkpoint(
        checkpoint, chosen.keep, each.chopped, chosen.strategy, about, overwrite=True,
        recipe=chosen.recipe,
    )  # fmt: skip
    return {"kept_layers": list(_of_parent(each)), "bytes": plan.after.bytes}


def _choice(settings: PipelineSettings, each: Round, checkpoint: Checkpoint) -> choice.Choice:
    wanted = settings.chop
    if each.keep is not None:
        if wanted.keep:
            return choice.Choice("keep", {"keep": wanted.keep}, each.keep)
        return choice.Choice(wanted.strategy, {"remove": wanted.remove}, each.keep)
    if wanted.strategy == "laco":
        return choice.by_laco(
            each.model,
            _round_revision(settings, each),
            text_names(calibration_text(settings)),
            each.remove,
            _analysis_settings(settings, ()),
            settings.text.field,
        )
    protect = parse_protect(wanted.protect)
    return choice.by_analysis_in(each.analysis, checkpoint, wanted.strategy, each.remove, protect)


def _analysis_settings(settings: PipelineSettings, measures: tuple[str, ...]) -> AnalysisSettings:
    return analysis_settings(
        settings.calibration, measures, settings.chop.protect, settings.heal.seed
    )


def analysis_settings(
    calibration: CalibrationSettings, measures: tuple[str, ...], protect: str, seed: int
) -> AnalysisSettings:
    return AnalysisSettings(
        sequences=calibration.sequences,
        sequence_length=calibration.sequence_length,
        batch_size=calibration.batch_size,
        measures=measures,
        protect=parse_protect(protect),
        seed=seed,
    )


def heal_config(heal: HealSettings, stores: dict[str, Any], **changes: Any) -> ConfigDict:
    """The training run that heals. stores: of `data`; changes: what else differs from `heal`."""
    data = dataclasses.replace(heal.data, **stores)
    heal = dataclasses.replace(heal, data=data, **changes)
    return ConfigDict(dataclasses.asdict(heal), convert_dict=True)


def kept(each: Round) -> Keep:
    """The layers that a round's chop kept, numbered as the model that it chopped."""
    return _history(each)[-1]


def _of_parent(each: Round) -> Keep:
    """The same, numbered as the pipeline's parent."""
    first, *later = _history(each)[-each.number :]
    for keep in later:
        first = tuple(first[place] for place in keep)
    return first


def _history(each: Round) -> list[Keep]:
    record = read_provenance(each.chopped)
    if record is None:
        raise UserError(
            f"{each.chopped} has lost its chopjax.json; delete the folder to have it chopped again"
        )
    return [tuple(step["kept_layers"]) for step in entries(record, CHOP)]


def export(heal: Path, healed: Path) -> dict[str, Any]:
    export_model(str(heal), healed, overwrite=True)
    return {"folder": str(healed)}


def score(settings: PipelineSettings, name: str, model: str) -> dict[str, Any]:
    """Size and document loss of one model: its loss on held-out text, every document whole."""
    loaded, engine = _open(settings, name, model)
    measured = held_out(settings, loaded, engine)
    assert isinstance(loaded.weights, Checkpoint)
    return {
        "layers": loaded.config.num_layers,
        "parameters": parameters.count(loaded.config),
        "bytes": sum(tensor.nbytes for tensor in loaded.weights.tensors.values()),
        "document_loss": measured["nats_per_token"],
        "perplexity": measured["perplexity"],
        "bits_per_byte": measured["bits_per_byte"],
        "tokens": measured["tokens"],
        "convention": measured["convention"],
    }


def held_out(settings: AnySettings, loaded: Loaded, engine: Engine) -> dict[str, Any]:
    """The perplexity of the held-out text, every document whole."""
    texts = read_texts(text_names(settings.text.held_out), settings.text.field)
    return perplexity(engine, load_tokenizer(loaded.folder), texts)


def score_on(
    settings: PipelineSettings, scored: scores.Scored, name: str, model: str, out: Path
) -> dict[str, Any]:
    """Accuracies on tasks and perplexities of texts of one model. Answers that an earlier call
    with other tasks and texts left in `out` are not computed again."""
    if not scored:
        return {"accuracies": {}, "texts": {}}
    loaded, engine = _open(settings, name, model)
    journal = {"output": out, "log_samples": True, "keep_journal": True}
    found = scores.measure(settings.score, scored, loaded, engine, **journal)
    return scores.measured_on(found, scored.texts)


def _open(settings: PipelineSettings, name: str, model: str) -> tuple[Loaded, Engine]:
    wanted = settings.score
    return open_engine(model, _revision(settings, name), wanted.dtype, wanted.max_length or None)


def window_losses(
    settings: PipelineSettings, healing: ConfigDict, folders: dict[str, str]
) -> dict[str, float]:
    """The models' window losses: on held-out text as healing measures it, in windows of the
    training length. Parent's and chopped model's are the lines of the healing curve."""
    heal = training.read(healing)
    mesh = meshes.make_mesh(heal.mesh.data, heal.mesh.fsdp, heal.mesh.tensor, heal.mesh.slices)
    losses = {}
    with jax.set_mesh(mesh):
        for name, folder in folders.items():
            revision = _revision(settings, name)
            config = describe(folder, revision).config
            where = meshes.shardings(config, mesh)
            dtype = heal.compute.param_dtype
            params = load(folder, revision, shardings=where, dtype=dtype).params
            losses[name], _ = held_out_loss(config, params, heal, mesh)
    return losses


def latency(settings: PipelineSettings, folders: dict[str, str]) -> dict[str, Any]:
    wanted = settings.score
    models = {}
    for name, folder in folders.items():
        loaded = load(folder, _revision(settings, name), dtype=wanted.dtype)
        models[name] = (loaded.params, loaded.config)
    longest = min(config.max_positions for _, config in models.values())
    length = min(wanted.latency_length or LATENCY_LENGTH, longest)
    compute = Compute(dtype=wanted.dtype)
    with progress("latency", timing.ROUNDS + 1, "rounds") as bar:
        found = timing.measure(
            models, wanted.latency_batch, length, compute, phases=("forward",), advance=bar.advance
        )
    return {
        "seconds": {name: timings["forward"].seconds for name, timings in found.items()},
        "batch": wanted.latency_batch,
        "length": length,
        "device": device(),
    }


def _revision(settings: PipelineSettings, name: str) -> str | None:
    return settings.revision or None if name == "parent" else None


def _round_revision(settings: PipelineSettings, each: Round) -> str | None:
    return None if each.after else settings.revision or None


def device() -> str:
    kind: str = jax.devices()[0].device_kind
    return kind
