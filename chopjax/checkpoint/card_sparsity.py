"""What a model card says of zeros in the weights, from chopjax.json's history (provenance.py).
No jax.

    {"step": "sparsity", "method": "magnitude", "wanda" or "sparsegpt", "pattern": "2:4" or a share,
     "zeros": …, "weights": …,               of the blocks' matrices
     "text": […], "sequences": …, "sequence_length": …, "seed": …, "tokens": …,  what it looked at
     "loss": {"parent": …, "pruned": …},     nats per predicted token
     "loss_tokens": …, "loss_held_back": …}  of that text, or of other sequences of it

`text` and what follows it are missing where there was none. A training run with DimCHOP leaves
zeros as well; its entry has `dimchop` (training_record.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from chopjax.checkpoint.provenance import CHOP, CLASSIFICATION, SPARSITY, TRAINING, WIDTH

NOTE = (
    "Tensors with zeros are stored dense: they are as large as the parent's, and nothing is known "
    "to run them faster."
)
_METHODS = {"wanda": "Wanda", "sparsegpt": "SparseGPT", "magnitude": "magnitude"}


def with_zeros(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The entries of a history after which there were zeros, oldest first."""
    return [entry for entry in record["history"] if made_zeros(entry)]


def made_zeros(entry: Mapping[str, Any]) -> bool:
    step = entry.get("step")
    return step == SPARSITY or (step == TRAINING and bool(_dimchop(entry)))


def facts(entry: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Rows of the card's table, of a record that may be anybody's. history: all of its entries."""
    what = _columns(entry) if _dimchop(entry) else _weights(entry)
    if not _dimchop(entry):  # which says no numbers
        what += taken_since(entry, history)
    if fillers := list(dict.fromkeys(filter(None, map(_fills, _later(entry, history))))):
        what += f"; {' and '.join(fillers)} since then filled some of them"
    return [("sparsity", what), *loss_facts("sparsity", entry)]


def taken_since(entry: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> str:
    """What to add where weights were counted that are not all there any more; empty where they
    are."""
    takers = list(dict.fromkeys(filter(None, map(_takes, _later(entry, history)))))
    return f"; {' and '.join(takers)} since then took some of these weights" if takers else ""


def _later(
    entry: Mapping[str, Any], history: Sequence[Mapping[str, Any]]
) -> Sequence[Mapping[str, Any]]:
    return history[[step is entry for step in history].index(True) + 1 :]


def _takes(step: Mapping[str, Any]) -> str:
    """What was done then and left fewer weights; empty where it left them all."""
    if step.get("step", CHOP) == CHOP:
        kept, parent = step.get("kept_layers"), step.get("parent")
        if not (isinstance(kept, list) and isinstance(parent, dict)):
            return ""
        return "a chop" if len(kept) != parent.get("num_layers") else ""
    return "a narrowing" if step["step"] == WIDTH else ""


def loss_facts(name: str, entry: Mapping[str, Any], after: str = "pruned") -> list[tuple[str, str]]:
    """A row with the losses before and after, where a record has them. after: what the record calls
    the latter."""
    loss = entry.get("loss")
    if not isinstance(loss, dict):
        return []
    if not all(isinstance(loss.get(which), float) for which in ("parent", after)):
        return []
    where = "other text" if entry.get("loss_held_back") else "the text that was looked at"
    said = f"{loss[after]:.4f} nats per token, {loss['parent']:.4f} before, on {where}"
    return [(f"{name}: loss", said)]


def _weights(entry: Mapping[str, Any]) -> str:
    method = str(entry.get("method"))
    zeros, weights = entry.get("zeros"), entry.get("weights")
    what = f"{_METHODS.get(method, method)}, {entry.get('pattern')}"
    if isinstance(zeros, int) and isinstance(weights, int):
        what += f": {zeros:,} of the {weights:,} weights of the blocks' matrices became zero"
    return what


def _columns(entry: Mapping[str, Any]) -> str:
    about, steps = _dimchop(entry), entry.get("steps")
    final, end, side = about.get("final"), about.get("end"), about.get("columns")
    if not (isinstance(final, float) and isinstance(end, int) and isinstance(steps, int)):
        return "DimCHOP"
    share = f"{100 * final:g} % of the {side} columns of each of the blocks' matrices"
    if steps < end:
        return f"DimCHOP, after {steps:,} of the {end:,} steps that lead to zeros in {share}"
    return f"DimCHOP: {share} are zero"


def _dimchop(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What a training run's entry says of it; nothing where there was none."""
    about = entry.get("dimchop")
    return about if isinstance(about, dict) else {}


def _fills(step: Mapping[str, Any]) -> str:
    """What was done then and did not keep zeros; empty where they were kept."""
    if step.get("step", CHOP) == CHOP:
        settings = step.get("settings") or {}
        repair = settings.get("repair")
        # A factor keeps zeros; a product with a map, or another layer's weights added, does not.
        if isinstance(repair, dict) and repair.get("kind") != "scalar" and repair.get("folded"):
            return "a repair"
        return "merging layers" if settings.get("merged") else ""
    trained = step["step"] == TRAINING and step.get("masks") != "fixed"
    taught = step["step"] == CLASSIFICATION and step.get("method") in ("full", "lora")
    return "training" if trained or taught else ""
