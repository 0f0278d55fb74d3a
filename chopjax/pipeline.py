"""The whole way: parent → score → chop → score → heal → score → export.

WORKDIR/tokens/train, WORKDIR/tokens/held_out    token stores
WORKDIR/chopped                                  Hugging Face checkpoint
WORKDIR/heal                                     training run, with its checkpoints
WORKDIR/healed                                   Hugging Face checkpoint with a model card
WORKDIR/scores/MODEL/                            lm-evaluation-harness's result files
WORKDIR/stages/                                  what is done, with which settings
WORKDIR/report.json, WORKDIR/healing.png         what came of it
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from chopjax.checkpoint.describe import Description, describe
from chopjax.checkpoint.export import export_model
from chopjax.checkpoint.load import load
from chopjax.checkpoint.source import Checkpoint
from chopjax.chop.configurations import Keep, choose, parse_keep, ranges
from chopjax.chop.stream import chop_checkpoint
from chopjax.data.prepare import prepare
from chopjax.data.sources import find_sources
from chopjax.data.tokenizer import load_tokenizer
from chopjax.errors import UserError
from chopjax.models import parameters
from chopjax.models.decoder import Compute
from chopjax.pipeline_settings import PipelineSettings, read
from chopjax.progress import say
from chopjax.report.pipeline import write_report
from chopjax.score.latency import forward_seconds
from chopjax.score.model import open_engine
from chopjax.score.perplexity import perplexity, read_texts
from chopjax.score.run import evaluate
from chopjax.score.tasks import load_tasks
from chopjax.stages import Stage, run_stages
from chopjax.train import mesh as meshes
from chopjax.train import settings as training
from chopjax.train.evaluation import held_out_loss
from chopjax.train.loop import train
from chopjax.train.workdir import owned

MODELS = ("parent", "chopped", "healed")
LATENCY_LENGTH = 512  # tokens at most, where the settings leave it open


def run(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Run what is not done yet; returns what report.json holds.

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
    keep = _keep(settings, parent.config.num_layers)
    with owned(workdir):
        stages = _stages(settings, workdir, parent, keep)
        results = run_stages(workdir, stages)
        return write_report(workdir, dataclasses.asdict(settings), results)


def _keep(settings: PipelineSettings, num_layers: int) -> Keep:
    chop = settings.chop
    if chop.keep:
        return parse_keep(chop.keep, num_layers)
    return choose(chop.strategy, num_layers, chop.remove)


def _stages(
    settings: PipelineSettings, workdir: Path, parent: Description, keep: Keep
) -> list[Stage]:
    chopped, heal, healed = (workdir / name for name in ("chopped", "heal", "healed"))
    folders = dict(zip(MODELS, (settings.model, str(chopped), str(healed)), strict=True))
    healing = _heal_config(settings, workdir, keep)
    training.read(healing)
    origin = _identity(parent)
    texts = {
        part: _text_files(getattr(settings.text, part), settings.text.field)
        for part in ("train", "held_out")
    }
    fingerprint = load_tokenizer(settings.model, settings.revision or None).fingerprint

    def tokens(part: str) -> Stage:
        out = workdir / "tokens" / part
        return Stage(
            name=f"tokens-{part}",
            settings={"text": texts[part], "tokenizer": fingerprint},
            outputs=(out,),
            needs=(),
            run=lambda: _prepare(settings, getattr(settings.text, part), out),
            clean=lambda: _remove(out),
        )

    def score(name: str, needs: tuple[str, ...]) -> Stage:
        out = workdir / "scores" / name
        about = dataclasses.asdict(settings.score)
        about = {key: value for key, value in about.items() if not key.startswith("latency")}
        return Stage(
            name=f"score-{name}",
            settings=about | {"held_out": texts["held_out"]} | ({} if needs else origin),
            needs=needs,
            run=lambda: _score(settings, name, folders[name], out),
            clean=lambda: _remove(out),
        )

    return [
        score("parent", ()),
        tokens("train"),
        tokens("held_out"),
        Stage(
            name="chop",
            settings=origin | dataclasses.asdict(settings.chop) | {"kept_layers": list(keep)},
            needs=(),
            run=lambda: _chop(settings, parent, keep, chopped),
            clean=lambda: _remove(chopped),
            outputs=(chopped,),
        ),
        score("chopped", ("chop",)),
        Stage(
            name="held-out-loss",
            settings={"heal": training.flat(_evaluation_settings(healing))},
            needs=("tokens-held_out", "chop", "score-parent"),
            run=lambda: _held_out_losses(settings, healing, folders),
            clean=lambda: None,
        ),
        Stage(
            name="heal",
            settings=_meaning(healing),
            needs=("chop", "tokens-train"),
            run=lambda: train(healing, heal),
            clean=lambda: _remove(heal),
            outputs=(heal,),
        ),
        Stage(
            name="export",
            settings={},
            needs=("heal",),
            run=lambda: _export(heal, healed),
            clean=lambda: _remove(healed),
            outputs=(healed,),
        ),
        score("healed", ("export",)),
        Stage(
            name="latency",
            settings={
                "batch": settings.score.latency_batch,
                "length": settings.score.latency_length,
                "dtype": settings.score.dtype,
                "device": _device(),
            },
            needs=("chop", "export", "score-parent"),
            run=lambda: _latency(settings, folders),
            clean=lambda: None,
        ),
    ]


# ------------------------------------------------------------------------------ What is done


def _prepare(settings: PipelineSettings, inputs: str, out: Path) -> dict[str, Any]:
    store = prepare(
        _names(inputs),
        load_tokenizer(settings.model, settings.revision or None),
        out,
        field=settings.text.field,
        workers=settings.text.workers,
    )[""]
    return {"tokens": store.num_tokens, "documents": store.num_documents}


def _chop(settings: PipelineSettings, parent: Description, keep: Keep, out: Path) -> dict[str, Any]:
    assert isinstance(parent.weights, Checkpoint)
    say(f"keeping layers {ranges(keep)} of {parent.config.num_layers}")
    by_list = bool(settings.chop.keep)
    strategy = "keep" if by_list else settings.chop.strategy
    about = {"keep": settings.chop.keep} if by_list else {"remove": settings.chop.remove}
    plan = chop_checkpoint(parent.weights, keep, out, strategy, about, overwrite=True)
    return {"kept_layers": list(keep), "bytes": plan.after.bytes}


def _export(heal: Path, healed: Path) -> dict[str, Any]:
    export_model(str(heal), healed, overwrite=True)
    return {"folder": str(healed)}


def _score(settings: PipelineSettings, name: str, model: str, out: Path) -> dict[str, Any]:
    """Held-out perplexity and task accuracies of one model."""
    score = settings.score
    loaded, engine = open_engine(model, _revision(settings, name), score.dtype)
    texts = read_texts(_names(settings.text.held_out), settings.text.field)
    measured = perplexity(engine, load_tokenizer(loaded.folder), texts)
    accuracies = {}
    if score.tasks:
        found = evaluate(
            loaded,
            engine,
            load_tasks(
                _names(score.tasks),
                score.include_path or None,
                None if score.num_fewshot < 0 else score.num_fewshot,
            ),
            output=out,
            limit=score.limit or None,
            log_samples=True,
        )
        accuracies = _accuracies(found["results"])
    assert isinstance(loaded.weights, Checkpoint)
    return {
        "layers": loaded.config.num_layers,
        "parameters": parameters.count(loaded.config),
        "bytes": sum(tensor.nbytes for tensor in loaded.weights.tensors.values()),
        "loss": measured["nats_per_token"],
        "perplexity": measured["perplexity"],
        "bits_per_byte": measured["bits_per_byte"],
        "tokens": measured["tokens"],
        "convention": measured["convention"],
        "accuracies": accuracies,
    }


def _accuracies(results: Mapping[str, Any]) -> dict[str, tuple[float, float | None]]:
    """ "task metric" → (value, standard error), from the harness's results."""
    found = {}
    for task, metrics in results.items():
        for name, value in metrics.items():
            metric, _, filtered = name.partition(",")
            if not filtered or metric.endswith("_stderr") or not isinstance(value, float):
                continue
            error = metrics.get(f"{metric}_stderr,{filtered}")
            found[f"{task} {metric}"] = (value, error if isinstance(error, float) else None)
    return found


def _held_out_losses(
    settings: PipelineSettings, healing: ConfigDict, folders: dict[str, str]
) -> dict[str, float]:
    """Parent's and chopped model's loss, measured as healing measures it: in windows of the
    training length. The lines of the healing curve."""
    heal = training.read(healing)
    mesh = meshes.make_mesh(heal.mesh.data, heal.mesh.fsdp, heal.mesh.tensor, heal.mesh.slices)
    losses = {}
    with jax.set_mesh(mesh):
        for name in ("parent", "chopped"):
            revision = _revision(settings, name)
            config = describe(folders[name], revision).config
            where = meshes.shardings(config, mesh)
            dtype = heal.compute.param_dtype
            params = load(folders[name], revision, shardings=where, dtype=dtype).params
            losses[name], _ = held_out_loss(config, params, heal, mesh)
    return losses


def _latency(settings: PipelineSettings, folders: dict[str, str]) -> dict[str, Any]:
    score = settings.score
    models = {}
    for name, folder in folders.items():
        loaded = load(folder, _revision(settings, name), dtype=score.dtype)
        models[name] = (loaded.params, loaded.config)
    longest = min(config.max_positions for _, config in models.values())
    length = min(score.latency_length or LATENCY_LENGTH, longest)
    seconds = forward_seconds(models, score.latency_batch, length, Compute(dtype=score.dtype))
    return {
        "seconds": seconds,
        "batch": score.latency_batch,
        "length": length,
        "device": _device(),
    }


# --------------------------------------------------------------------- What results depend on


def _heal_config(settings: PipelineSettings, workdir: Path, keep: Keep) -> ConfigDict:
    """The training run's config. Where the parent trains before the chop, it starts from the
    parent and chops itself; else it starts from the chopped checkpoint."""
    heal = settings.heal
    stores = {part: str(workdir / "tokens" / part) for part in ("train", "held_out")}
    heal = dataclasses.replace(
        heal,
        model=str(workdir / "chopped"),
        data=dataclasses.replace(heal.data, train=stores["train"], evaluation=stores["held_out"]),
    )
    if settings.chop.after_steps:
        text = ",".join(map(str, keep))
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


def _identity(parent: Description) -> dict[str, Any]:
    """What tells one parent from another: a commit, or the sizes and times of all its files."""
    if parent.revision:
        return {"parent": parent.name, "revision": parent.revision}
    assert isinstance(parent.weights, Checkpoint)
    # config.json and the tokenizer count as much as the weights.
    stats = {file.name: file.stat() for file in sorted(parent.folder.iterdir()) if file.is_file()}
    return {
        "parent": str(parent.folder.resolve()),
        "files": {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()},
    }


def _text_files(inputs: str, field: str) -> list[Any]:
    """The files of a text source with their sizes and times, and the field that is their text.

    Raises UserError if there is none.
    """
    files = [file for source in find_sources(_names(inputs), field) for file in source.files]
    result = []
    for file in files:
        path = Path(file["name"])
        time = path.stat().st_mtime_ns if path.exists() else None
        result.append([file["name"], file.get("size"), time, field])
    return result


def _revision(settings: PipelineSettings, name: str) -> str | None:
    return settings.revision or None if name == "parent" else None


def _names(inputs: str) -> list[str]:
    return [name.strip() for name in inputs.split(",") if name.strip()]


def _device() -> str:
    return jax.devices()[0].device_kind


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
