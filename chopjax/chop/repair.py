"""`chopjax chop --repair`: what replaces some of a chop's weights, found on some text."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from chopjax.checkpoint.describe import Description, describe
from chopjax.checkpoint.load import load
from chopjax.checkpoint.source import Checkpoint
from chopjax.chop.analysis import AnalysisSettings, checked
from chopjax.chop.calibration import CalibrationBatch, make_batches, predicted_tokens
from chopjax.chop.folds import Folds
from chopjax.chop.importance import Protect
from chopjax.chop.merge import Recipe
from chopjax.chop.prefixes import Prefixes
from chopjax.chop.repair_check import check_repair
from chopjax.chop.repair_params import repair_params, student_of
from chopjax.chop.repair_walk import layer_runs
from chopjax.data.excerpts import excerpts, others
from chopjax.data.tokenizer import check_ids, load_tokenizer
from chopjax.keep import Keep
from chopjax.models.compute import Compute
from chopjax.models.config import ModelConfig
from chopjax.models.parameters import Params
from chopjax.progress import progress, say

HELD_BACK = 16  # sequences of the same text that the loss is measured on


@dataclasses.dataclass(frozen=True)
class RepairSettings:
    """kind: one of fold_place.KINDS. The rest as for `chopjax analyze`."""

    kind: str
    ridge: float = 0.1  # towards the identity, in means of the Gram matrix's diagonal
    sequences: int = 128
    sequence_length: int = 0  # tokens; 0: the context length, at most 2048
    batch_size: int = 8
    seed: int = 0  # which documents


def repair(
    model: str,
    revision: str | None,
    inputs: Sequence[str],
    keep: Keep,
    recipe: Recipe,
    settings: RepairSettings,
    field: str = "text",
) -> Folds:
    """What a chop of the model writes in place of some of its weights. The removed layers are read
    for it, and run.

    Raises UserError before the weights are read where settings, text or model are not right.
    """
    begun = time.monotonic()
    description = describe(model, revision)
    config = description.config
    student_config = _config(description, settings, keep)
    sequences, held_back, length = _text(model, revision, inputs, config, settings, field)
    say(f"repair: loading {model}, all of its {config.num_layers} layers")
    params = load(model, revision).params
    compute = Compute()  # float32
    size = min(settings.batch_size, len(sequences))
    student = student_of(params, config, recipe)
    runs = layer_runs(keep, config.num_layers, settings.kind)
    with progress("repair", runs, "layers") as bar:
        repaired = repair_params(
            params, student, config, student_config, compute, make_batches(sequences, size),
            keep, settings.kind, settings.ridge, bar.advance,
        )  # fmt: skip
    batches = make_batches(held_back or sequences, size)
    with progress("what it gained"):
        whole = tuple(range(config.num_layers))
        losses = {
            "parent": _loss(params, config, compute, batches, whole),
            "chopped": _loss(student, config, compute, batches, keep),
            "repaired": _loss(repaired.params, repaired.config, compute, batches, keep),
        }
    about: dict[str, Any] = {
        "kind": settings.kind,
        "ridge": settings.ridge,
        "data": list(inputs),
        "sequences": len(sequences),
        "sequence_length": length,
        "seed": settings.seed,
        "tokens": sum(map(len, sequences)),
        "gaps": repaired.gaps,
        "loss": losses,
        "loss_tokens": predicted_tokens(batches),
        "loss_held_back": bool(held_back),
        "seconds": round(time.monotonic() - begun, 1),
    }
    return Folds(repaired.values, student_config.mlp_bias and not config.mlp_bias, about)


def _config(description: Description, settings: RepairSettings, keep: Keep) -> ModelConfig:
    weights = description.weights
    assert isinstance(weights, Checkpoint)
    return check_repair(weights, keep, settings.kind, settings.ridge)


def _text(
    model: str,
    revision: str | None,
    inputs: Sequence[str],
    config: ModelConfig,
    settings: RepairSettings,
    field: str,
) -> tuple[list[list[int]], list[list[int]], int]:
    """Sequences to look at, others to measure on (none where the text has no more), and how long
    they may be."""
    sound = checked(
        AnalysisSettings(
            sequences=settings.sequences,
            sequence_length=settings.sequence_length,
            batch_size=settings.batch_size,
            protect=Protect(0, 0),
        ),
        config,
    )
    tokenizer = load_tokenizer(model, revision)
    length = sound.sequence_length
    with progress("read the text"):
        sequences = excerpts(inputs, tokenizer, settings.sequences, length, settings.seed, field)
        held_back = others(sequences, inputs, tokenizer, HELD_BACK, length, settings.seed, field)
    check_ids([*sequences, *held_back], config.vocab_size, lambda: tokenizer)
    return sequences, held_back, length


def _loss(
    params: Params,
    config: ModelConfig,
    compute: Compute,
    batches: Sequence[CalibrationBatch],
    keep: Keep,
) -> float:
    """Nats per predicted token."""
    return float(Prefixes(params, config, compute, batches).losses([keep])[keep])
