"""`chopjax narrow`: a checkpoint with fewer hidden units, heads and dimensions in each layer."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chopjax.checkpoint.card import write_record
from chopjax.checkpoint.changed import write_changed
from chopjax.checkpoint.open import open_checkpoint
from chopjax.checkpoint.packed import say_decoded
from chopjax.checkpoint.provenance import WIDTH, add_entry, check_provenance, record_of
from chopjax.checkpoint.source import Checkpoint
from chopjax.checkpoint.verify import check_tied
from chopjax.checkpoint.writer import MAX_SHARD_BYTES
from chopjax.disk.atomic import check_free, new_folder
from chopjax.disk.files import expanded
from chopjax.errors import UserError, did_you_mean
from chopjax.models import parameters
from chopjax.narrow.slices import Stayed, narrowed_tensors
from chopjax.narrow.units import Plan, as_bits, make_plan, strongest, units
from chopjax.narrow.walk import METHODS, Scores, loss, unit_scores
from chopjax.progress import progress
from chopjax.sparsify.text import read_text

VERB = "narrow"
SEQUENCES = {"activation": 1024, "gradient": 10}  # the originals'


@dataclasses.dataclass(frozen=True)
class NarrowSettings:
    """shares: "mlp", "heads", "embed" → how much of these units (units.py) goes. method: one of
    walk.METHODS."""

    shares: Mapping[str, float]
    method: str
    sequences: int | None = None  # None: as many as the method's original
    sequence_length: int = 0  # tokens; 0: the context length, at most 2048
    seed: int = 0  # which documents


def narrow(
    model: str,
    out: Path,
    settings: NarrowSettings,
    inputs: Sequence[str],
    revision: str | None = None,
    field: str = "text",
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> dict[str, Any]:
    """Write the narrower checkpoint and say what was done (`--json` has it).

    Raises UserError, before anything is computed where that can be.
    """
    begun = time.monotonic()
    out = Path(os.path.abspath(expanded(out)))
    _check_method(settings.method)
    checkpoint = open_checkpoint(model, revision)
    config = checkpoint.config
    plan = make_plan(checkpoint.family, checkpoint.raw_config, config, settings.shares)
    check_provenance(checkpoint)
    check_free(out, VERB, overwrite, protect=[checkpoint.folder])
    sequences = SEQUENCES[settings.method] if settings.sequences is None else settings.sequences
    text = read_text(checkpoint, inputs, sequences, settings.sequence_length, settings.seed, field)
    say_decoded(checkpoint)
    checkpoint.fetch(checkpoint.tensors)
    check_tied(checkpoint)
    with new_folder(out, VERB, overwrite, protect=[checkpoint.folder]) as folder:
        with tempfile.TemporaryDirectory(dir=folder) as work:
            kinds = tuple(plan.kept)
            scores = unit_scores(checkpoint, settings.method, text.calibration, kinds, Path(work))
            stayed = [_stayed(each, plan, layer) for layer, each in enumerate(scores)]
            _write(checkpoint, plan, stayed, folder, out, max_shard_bytes)
            losses = {
                "parent": loss(checkpoint, text.held_out, Path(work), "the parent"),
                "pruned": loss(
                    open_checkpoint(str(folder)), text.held_out, Path(work), "what stayed"
                ),
            }
        before = units(config)
        counts = {kind: {"before": before[kind], "after": n} for kind, n in plan.kept.items()}
        if "heads" in counts:
            counts["heads"]["queries"] = config.num_heads // before["heads"]
        about = {
            "method": settings.method,
            "parameters": {
                "before": parameters.count(config),
                "after": parameters.count(plan.config),
            },
            "loss": losses,
            **text.record(inputs, settings.seed),
        }
        record = add_entry(
            WIDTH,
            record_of(checkpoint),
            checkpoint.name,
            checkpoint.revision,
            config.num_layers,
            {"units": _with_bits(counts, stayed), **about},
        )
        write_record(folder, record)
    return {
        "model": model,
        "revision": checkpoint.revision,
        "decoded": checkpoint.decoded,
        "out": str(out),
        "units": counts,
        **about,
        "layers": config.num_layers,
        "seconds": round(time.monotonic() - begun, 1),
    }


def _check_method(method: str) -> None:
    if method not in METHODS:
        near = did_you_mean(method, METHODS)
        raise UserError(f"--method: {method!r} is not one of {', '.join(METHODS)}{near}")


def _stayed(scores: Scores, plan: Plan, layer: int) -> Stayed:
    """Of one layer, the units that stay."""
    for kind, values in scores.items():
        if not np.isfinite(values).all():
            raise UserError(
                f"the scores of layer {layer} ({kind}) are no finite numbers: weights or "
                "activations are NaN or too large; `chopjax inspect --check` names such weights"
            )
    return {kind: strongest(values, plan.kept[kind]) for kind, values in scores.items()}


def _with_bits(
    counts: Mapping[str, Mapping[str, int]], stayed: Sequence[Stayed]
) -> dict[str, dict[str, Any]]:
    """The counts, and which units stayed in each layer; of `embed` once, since it is the same."""
    return {
        kind: {
            **about,
            "stayed": [
                as_bits(each[kind], about["before"])
                for each in (stayed[:1] if kind == "embed" else stayed)
            ],
        }
        for kind, about in counts.items()
    }


def _write(
    checkpoint: Checkpoint,
    plan: Plan,
    stayed: Sequence[Stayed],
    folder: Path,
    out: Path,
    max_shard_bytes: int,
) -> None:
    tensors = narrowed_tensors(checkpoint, plan.config, stayed)
    with progress(f"write {out}", sum(tensor.nbytes for tensor in tensors), "B") as bar:
        write_changed(folder, checkpoint, plan.raw_config, tensors, max_shard_bytes, bar.advance)
