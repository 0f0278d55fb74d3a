"""What `run` and `sweep` do with text and models: tokenize, look at layers, score, time."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from chopjax.checkpoint.describe import describe
from chopjax.checkpoint.load import Loaded, load
from chopjax.checkpoint.source import Checkpoint
from chopjax.chop.analysis import AnalysisSettings, analyze, way_of
from chopjax.chop.importance import parse_protect
from chopjax.chop.measured import Measured
from chopjax.chop.repair import RepairSettings
from chopjax.data.lists import text_names
from chopjax.data.prepare import prepare
from chopjax.data.tokenizer import load_tokenizer
from chopjax.latency import measure as timing
from chopjax.latency.drafts import beginnings, measure_drafts, room
from chopjax.models import mesh as meshes
from chopjax.models import parameters
from chopjax.models.compute import Compute
from chopjax.progress import progress
from chopjax.runs import scored as scores
from chopjax.runs.inputs import Contents
from chopjax.runs.settings import (
    AnySettings,
    Model,
    PipelineSettings,
    ScoreSettings,
    SweepSettings,
    calibration_text,
    parent_of,
)
from chopjax.score.drafting import FIRST_LENGTH, Draft
from chopjax.score.engine import Engine
from chopjax.score.model import open_engine
from chopjax.score.perplexity import perplexity, read_texts
from chopjax.train import settings as training
from chopjax.train.evaluation import held_out_loss

LATENCY_LENGTH = 512  # tokens at most, where the settings leave it open


def prepare_text(settings: AnySettings, inputs: str, out: Path) -> dict[str, Any]:
    store = prepare(
        text_names(inputs),
        load_tokenizer(*parent_of(settings)),
        out,
        field=settings.text.field,
        workers=settings.text.workers,
    )[""]
    return {"tokens": store.num_tokens, "documents": store.num_documents}


def analysis_settings(
    settings: AnySettings, measures: tuple[str, ...], protect: str, seed: int
) -> AnalysisSettings:
    calibration = dataclasses.asdict(settings.calibration)
    del calibration["text"]
    return AnalysisSettings(
        **calibration, measures=measures, protect=parse_protect(protect), seed=seed
    )


def repair_settings(settings: AnySettings, kind: str, ridge: float, seed: int) -> RepairSettings:
    calibration = dataclasses.asdict(settings.calibration)
    del calibration["text"]
    return RepairSettings(kind, ridge, **calibration, seed=seed)


def analysis(
    settings: AnySettings, model: Model, about: AnalysisSettings, journal: Path
) -> dict[str, Any]:
    """What the layers of a model do on the calibration text. journal: of what is measured so far;
    it holds for the content of the model and the text."""
    text, field = text_names(calibration_text(settings)), settings.text.field
    inputs = Contents()
    asked = {
        "model": inputs.model(describe(*model)),
        "text": inputs.texts(calibration_text(settings), field),
        "settings": way_of(about),
    }
    known = Measured(journal, asked)
    return analyze(model.name, text, about, model.revision, field, known)


# ------------------------------------------------------------------------------------ Scoring


def opened(settings: ScoreSettings, model: Model, codes: bool = False) -> tuple[Loaded, Engine]:
    """codes: of what `chopjax quantize` wrote these, and not the numbers that they stand for."""
    description = describe(*model, quantized=codes)
    return open_engine(description, None, settings.dtype, settings.max_length or None)


def held_out(settings: AnySettings, loaded: Loaded, engine: Engine) -> dict[str, Any]:
    """The perplexity of the held-out text, every document whole."""
    texts = read_texts(text_names(settings.text.held_out), settings.text.field)
    return perplexity(engine, load_tokenizer(loaded.folder), texts)


def drafted(
    settings: SweepSettings, parent: Loaded, own: Engine, draft: Engine
) -> dict[str, float | None]:
    """What a model brings as a draft for the parent, whose engine is `own`: one text at a time,
    behind the beginnings of held-out documents. All drafts are of one length: accepted lengths
    compare at the same one alone."""
    longest, new = room(own.max_length, LATENCY_LENGTH)
    texts = read_texts(text_names(settings.text.held_out), settings.text.field)
    prompts = beginnings(load_tokenizer(parent.folder), texts, settings.draft, longest)
    with progress("draft", len(prompts) + 1, "texts") as bar:
        given = own, [Draft(draft)], prompts, new, 1, FIRST_LENGTH
        (found,) = measure_drafts(*given, advance=bar.advance)
    return dataclasses.asdict(found) | {"speed_up": found.speed_up}


def score(settings: PipelineSettings, model: Model) -> dict[str, Any]:
    """Size and document loss of one model: its loss on held-out text, every document whole."""
    loaded, engine = opened(settings.score, model)
    measured = held_out(settings, loaded, engine)
    assert isinstance(loaded.weights, Checkpoint)
    names = ("perplexity", "bits_per_byte", "tokens", "convention")
    return {
        "layers": loaded.config.num_layers,
        "parameters": parameters.count(loaded.config),
        "bytes": sum(tensor.nbytes for tensor in loaded.weights.tensors.values()),
        "document_loss": measured["nats_per_token"],
    } | {name: measured[name] for name in names}


def score_on(
    settings: PipelineSettings, scored: scores.Scored, model: Model, out: Path
) -> dict[str, Any]:
    """Accuracies on tasks and perplexities of texts of one model. Answers that an earlier call
    with other tasks and texts left in `out` are not computed again."""
    if not scored:
        return {"accuracies": {}, "texts": {}}
    loaded, engine = opened(settings.score, model)
    journal = {"output": out, "log_samples": True, "keep_journal": True}
    results = scores.measure(settings.score, scored, loaded, engine, **journal)
    return scores.measured_on(results, scored.texts)


def window_losses(healing: ConfigDict, models: Mapping[str, Model]) -> dict[str, float]:
    """The models' window losses: on held-out text as healing measures it, in windows of the
    training length. Parent's and chopped model's are the lines of the healing curve."""
    heal = training.read(healing)
    mesh = meshes.make_mesh(heal.mesh.data, heal.mesh.fsdp, heal.mesh.tensor, heal.mesh.slices)
    losses = {}
    with jax.set_mesh(mesh):
        for name, model in models.items():
            config = describe(*model).config
            where = meshes.shardings(config, mesh)
            params = load(*model, shardings=where, dtype=heal.compute.param_dtype).params
            losses[name], _ = held_out_loss(config, params, heal, mesh)
    return losses


def latency(wanted: ScoreSettings, models: Mapping[str, Model]) -> dict[str, Any]:
    """Seconds of a forward pass of each model, side by side."""
    loaded = {name: load(*model, dtype=wanted.dtype) for name, model in models.items()}
    return timed(wanted, {name: (each.params, each.config) for name, each in loaded.items()})


def timed(wanted: ScoreSettings, models: timing.Models) -> dict[str, Any]:
    """`latency` of models in memory."""
    longest = min(config.max_positions for _, config in models.values())
    length = min(wanted.latency_length or LATENCY_LENGTH, longest)
    with progress("latency", timing.ROUNDS + 1, "rounds") as bar:
        measured = timing.measure(
            models,
            wanted.latency_batch,
            length,
            Compute(dtype=wanted.dtype),
            phases=("forward",),
            advance=bar.advance,
        )
    return {
        "seconds": {name: timings["forward"].seconds for name, timings in measured.items()},
        "batch": wanted.latency_batch,
        "length": length,
        "device": device(),
    }


def device() -> str:
    kind: str = jax.devices()[0].device_kind
    return kind
