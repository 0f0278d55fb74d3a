"""`chopjax analyze`: measure a model's layers on some text, and what each choice would cost."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from chopjax import __version__
from chopjax.checkpoint.describe import describe
from chopjax.checkpoint.identity import of_description
from chopjax.checkpoint.load import load
from chopjax.chop.calibration import CalibrationBatch, make_batches, predicted_tokens
from chopjax.chop.configurations import STRATEGIES
from chopjax.chop.importance import (
    ANALYSIS,
    DEFAULT_PROTECT,
    FORMAT,
    MEASURED,
    Protect,
    choose_measured,
)
from chopjax.chop.laco import laco
from chopjax.chop.measured import Measured
from chopjax.chop.merge import Recipe
from chopjax.chop.prefixes import Prefixes
from chopjax.chop.residual import measure_residual
from chopjax.chop.search import Removal, from_json, one_out, sleb
from chopjax.chop.taylor import taylor
from chopjax.data.excerpts import excerpts
from chopjax.data.tokenizer import check_ids, load_tokenizer
from chopjax.disk.atomic import new_folder
from chopjax.errors import UserError, did_you_mean
from chopjax.keep import Keep, ranges, removed
from chopjax.models import mesh as meshes
from chopjax.models import parameters
from chopjax.models.compute import Compute
from chopjax.models.config import ModelConfig
from chopjax.models.parameters import Params
from chopjax.progress import over, progress, say

# What can be measured, by the name of the strategy that needs it; "choices" is the loss of every
# strategy's choice for every number of layers.
MEASURES = ("similarity", "taylor", "perplexity", "sleb", "choices")
# The one pass over the residual stream serves three strategies.
_PASS = {"similarity": "similarity", "block-influence": "similarity", "magnitude": "similarity"}
MOST_SEQUENCES = 10**9
LONGEST = 2048  # tokens of a sequence, where the settings leave it open


@dataclasses.dataclass(frozen=True)
class AnalysisSettings:
    """How layers are measured. Recorded with the result."""

    sequences: int = 128  # SLEB's and ShortGPT's order of magnitude; Deeper Layers took 10,000
    sequence_length: int = 0  # tokens; 0: the context length, at most 2048
    batch_size: int = 8
    measures: tuple[str, ...] = MEASURES
    rounds: int = 0  # of SLEB's search: as many layers as will go; 0: all that may
    every_token: bool = False  # angular distance over all tokens, not the last of each sequence
    protect: Protect = DEFAULT_PROTECT
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0  # which documents
    fsdp: int = 1
    tensor: int = 1


def needed_measure(strategy: str) -> str:
    """What `analyze` has to measure for a strategy."""
    return _PASS.get(strategy, strategy)


def analyze(
    model: str,
    inputs: Sequence[str],
    settings: AnalysisSettings,
    revision: str | None = None,
    field: str = "text",
    known: Measured | None = None,
) -> dict[str, Any]:
    """Everything asked for, as analysis.json holds it. Raises UserError before the model is read
    where settings, text or model are not right.

    known: what is measured so far of this model, on this text, in this way (`way_of`). An analysis
    that was killed goes on from it, and one that is asked for more measures or rounds, too.
    """
    with _ready(model, inputs, settings, revision, field) as ready:
        given = ready.params, ready.config, ready.batches, ready.settings
        return ready.about | measure(*given, known or Measured(None, {}))


def way_of(settings: AnalysisSettings) -> dict[str, Any]:
    """What all that is measured depends on: the settings without how much is."""
    about = dataclasses.asdict(settings) | {"measures": []}
    del about["rounds"]
    return about


def find_merges(
    model: str,
    inputs: Sequence[str],
    settings: AnalysisSettings,
    remove: int,
    revision: str | None = None,
    field: str = "text",
) -> tuple[Recipe, dict[str, Any]]:
    """LaCo's recipe that leaves `remove` layers fewer, and what it was found with."""
    with _ready(model, inputs, settings, revision, field) as ready:
        L = ready.config.num_layers
        most = L - len(settings.protect.layers(L)) - 1  # one is left that the others fold into
        if not 1 <= remove <= most:
            raise UserError(f"laco can fold 1 to {most} of {L} layers away, not {remove}")
        compute = Compute(dtype=settings.dtype)
        with progress("LaCo"):
            recipe = laco(
                ready.params, ready.config, compute, ready.batches, remove, settings.protect, say
            )
        return recipe, ready.about


class _Ready(NamedTuple):
    params: Params
    config: ModelConfig
    batches: list[CalibrationBatch]
    settings: AnalysisSettings
    about: dict[str, Any]


@contextlib.contextmanager
def _ready(
    model: str, inputs: Sequence[str], settings: AnalysisSettings, revision: str | None, field: str
) -> Iterator[_Ready]:
    """The model and the text on the devices."""
    description = describe(model, revision)
    config = description.config
    settings = checked(settings, config)
    tokenizer = load_tokenizer(model, revision)
    with progress("read the text"):
        sequences = excerpts(
            inputs, tokenizer, settings.sequences, settings.sequence_length, settings.seed, field
        )
    check_ids(sequences, config.vocab_size, lambda: tokenizer)
    mesh = meshes.make_mesh(fsdp=settings.fsdp, tensor=settings.tensor)
    with jax.set_mesh(mesh) if mesh.size > 1 else contextlib.nullcontext():
        say(f"loading {model}: {config.num_layers} layers")
        params = load(model, revision, shardings=meshes.shardings(config, mesh)).params
        shards = meshes.batch_shards(mesh)
        size = -(-min(settings.batch_size, len(sequences)) // shards) * shards
        batches = [
            CalibrationBatch(*jax.device_put(tuple(batch), meshes.batch_sharding(mesh)))
            for batch in make_batches(sequences, size)
        ]
        about = {
            "format": FORMAT,
            "chopjax_version": __version__,
            "model": model,
            "revision": revision,
            "num_layers": config.num_layers,
            "num_parameters": parameters.count(config),
            "fingerprint": of_description(description),
            "data": list(inputs),
            "tokens": sum(map(len, sequences)),
            "predicted_tokens": predicted_tokens(batches),
            "settings": dataclasses.asdict(settings),
        }
        yield _Ready(params, config, batches, settings, about)


def checked(settings: AnalysisSettings, config: ModelConfig) -> AnalysisSettings:
    unknown = [name for name in settings.measures if name not in MEASURES]
    if unknown:
        raise UserError(
            f"--measures: {unknown[0]!r} is not one of {', '.join(MEASURES)}"
            + did_you_mean(unknown[0], MEASURES)
        )
    for flag, value in {
        "--sequences": settings.sequences,
        "--batch-size": settings.batch_size,
    }.items():
        if value < 1:
            raise UserError(f"{flag} {value}: at least 1 is needed")
        if value > MOST_SEQUENCES:
            raise UserError(f"{flag} {value}: at most {MOST_SEQUENCES:,}")
    if not 0 <= settings.sequence_length <= config.max_positions or settings.sequence_length == 1:
        raise UserError(
            f"--sequence-length {settings.sequence_length}: between 2 and the model's "
            f"{config.max_positions} positions"
        )
    if config.num_layers == 1:
        raise UserError("the model has one layer, and one must stay: there is nothing to choose")
    if settings.protect.most(config.num_layers) < 1:
        raise UserError(
            f"--protect {settings.protect.first},{settings.protect.last}: all "
            f"{config.num_layers} layers of the model would be protected"
        )
    length = settings.sequence_length or min(config.max_positions, LONGEST)
    return dataclasses.replace(
        settings, sequence_length=length, batch_size=min(settings.batch_size, settings.sequences)
    )


def measure(
    params: Params,
    config: ModelConfig,
    batches: Sequence[CalibrationBatch],
    settings: AnalysisSettings,
    known: Measured,
) -> dict[str, Any]:
    """The measures, each strategy's choices and their losses, for parameters in memory."""
    compute = Compute(dtype=settings.dtype)
    L, protect, wanted = config.num_layers, settings.protect, settings.measures
    measures: dict[str, Any] = {}
    if "similarity" in wanted:
        every = settings.every_token
        measures |= known.once(
            "similarity", lambda: _similarity(params, config, compute, batches, every)
        )
    if "taylor" in wanted:
        measures["taylor"] = known.once("taylor", lambda: _taylor(params, config, compute, batches))
    if not {"perplexity", "sleb", "choices"} & set(wanted):
        return {"measures": measures}
    prefixes = Prefixes(params, config, compute, batches)
    parent_loss = known.once("whole model", lambda: _whole_loss(prefixes))
    if "perplexity" in wanted:
        measures["one_out_loss"] = known.once("perplexity", lambda: _one_out(prefixes))
    if "sleb" in wanted:
        rounds = 0 if "choices" in wanted else settings.rounds  # choices are of every depth
        measures["sleb"] = _sleb(prefixes, protect, rounds, known)
    result: dict[str, Any] = {"parent_loss": float(parent_loss), "measures": measures}
    if "choices" in wanted:
        choices = all_choices({"num_layers": L, "measures": measures}, protect)
        lists = {keep for by_count in choices.values() for keep in by_count.values()}
        with progress("choices", len(lists) * prefixes.num_batches, "runs") as bar:
            losses = prefixes.losses(lists, done=bar.advance)
        costs = {
            strategy: {str(n): _choice(keep, L, losses[keep]) for n, keep in by_count.items()}
            for strategy, by_count in choices.items()
        }
        result |= {"choices": costs, "recommended": recommend(costs)}
    return result


def _similarity(
    params: Params,
    config: ModelConfig,
    compute: Compute,
    batches: Sequence[CalibrationBatch],
    every_token: bool,
) -> dict[str, Any]:
    say("angular distance, block influence, relative magnitude: one pass")
    seen = over(batches, "angular distance", "batches")
    residual = measure_residual(params, config, compute, seen, every_token)
    return {
        "distance": _plain(residual.distance_LL),
        "distance_deviation": _plain(residual.deviation_LL),
        "distance_examples": residual.examples,
        "influence": _plain(residual.influence_L),
        "cosine_score": _plain(residual.cosine_score_L),
        "magnitude": _plain(residual.magnitude_L),
    }


def _taylor(
    params: Params, config: ModelConfig, compute: Compute, batches: Sequence[CalibrationBatch]
) -> Any:
    say("Taylor importance: one backward pass")
    seen = over(batches, "Taylor importance", "batches")
    return _plain(taylor(params, config, compute, seen))


def _whole_loss(prefixes: Prefixes) -> float:
    whole = tuple(range(prefixes.num_layers))
    with progress("whole model", prefixes.num_batches, "runs") as bar:
        return float(prefixes.losses([whole], done=bar.advance)[whole])


def _one_out(prefixes: Prefixes) -> Any:
    with progress("one layer out", prefixes.num_layers * prefixes.num_batches, "runs") as bar:
        return _plain(one_out(prefixes, bar.advance))


def _sleb(
    prefixes: Prefixes, protect: Protect, rounds: int, known: Measured
) -> list[dict[str, Any]]:
    """So many rounds of the search, or all for 0; each is kept when it ends."""
    most = protect.most(prefixes.num_layers)
    rounds = min(rounds or most, most)
    begun = [from_json(round) for round in known.get("SLEB") or []][:rounds]
    runs = [(most - round) * prefixes.num_batches for round in range(rounds)]

    def record(removals: Sequence[Removal]) -> None:
        known.keep("SLEB", [removal.as_json() for removal in removals])

    with progress("SLEB", sum(runs), "runs", sum(runs[: len(begun)])) as bar:
        protected = protect.layers(prefixes.num_layers)
        found = sleb(prefixes, rounds, protected, done=bar.advance, begun=begun, record=record)
    return [removal.as_json() for removal in found]


def all_choices(analysis: Mapping[str, Any], protect: Protect) -> dict[str, dict[int, Keep]]:
    """Strategy → number of layers removed → keep list, named and measured strategies alike."""
    L = analysis["num_layers"]
    choices: dict[str, dict[int, Keep]] = {}
    for strategy, chosen in MEASURED.items():
        if chosen.measure in analysis["measures"]:
            counts = range(1, protect.most(L) + 1)
            choices[strategy] = {n: choose_measured(strategy, analysis, n, protect) for n in counts}
    for name, function in STRATEGIES.items():
        choices[name] = {}
        for n in range(1, protect.most(L) + 1):
            with contextlib.suppress(UserError):  # some cannot remove that many
                choices[name][n] = function(L, n)
    return {name: by_count for name, by_count in choices.items() if by_count}


def recommend(choices: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Number of layers removed → the choice with the lowest loss before healing, and by whom."""
    best: dict[str, Any] = {}
    for strategy, by_count in choices.items():
        for count, choice in by_count.items():
            if count not in best or choice["loss"] < best[count]["loss"]:
                best[count] = {"strategies": [strategy], **choice}
            elif choice["keep"] == best[count]["keep"]:
                best[count]["strategies"].append(strategy)
    return dict(sorted(best.items(), key=lambda item: int(item[0])))


def _choice(keep: Keep, num_layers: int, loss: float) -> dict[str, Any]:
    return {"keep": ranges(keep), "remove": ranges(removed(keep, num_layers)), "loss": float(loss)}


def _plain(array: Any) -> Any:
    """Lists of floats; None where there is no number, since JSON has no nan."""
    if np.ndim(array) == 0:
        return float(array) if np.isfinite(array) else None
    return [_plain(part) for part in array]


def write_analysis(
    out: Path,
    analysis: Mapping[str, Any],
    draw: Callable[[Mapping[str, Any], Path], list[str]],
    overwrite: bool = False,
) -> list[str]:
    """A folder with analysis.json, analysis.npz and the figures that `draw` adds and names."""
    with new_folder(out, "analyze", overwrite) as folder:
        (folder / ANALYSIS).write_text(json.dumps(analysis, indent=1) + "\n")
        _write_arrays(folder / "analysis.npz", analysis)
        return draw(analysis, folder)


def _write_arrays(path: Path, analysis: Mapping[str, Any]) -> None:
    """analysis.npz: the measures as arrays, nan where there is no number. `sleb_layers` are the
    layers in the order removed, `sleb_losses` the loss after each."""
    measures = dict(analysis["measures"])
    rounds = measures.pop("sleb", None)
    arrays: dict[str, Any] = {name: np.array(value, np.float64) for name, value in measures.items()}
    if rounds is not None:
        arrays["sleb_layers"] = np.array([r["layer"] for r in rounds], np.int64)
        arrays["sleb_losses"] = np.array([r["loss"] for r in rounds], np.float64)
    np.savez(path, **arrays)
