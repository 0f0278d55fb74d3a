"""What chopjax.json and the model card say of a training run, out of its run.json. No jax.

{"kind": "full" or "adapters",         all weights were trained, or what is added to some
 "adapter": {"rank": …, "alpha": …, "dropout": …, "targets": …, "base": …},   with adapters alone
 "masks": "fixed",                      where weights that were zero stayed zero; else absent
 "dimchop": {"final": …, "end": …, "columns": …, …},   where columns became zero, as the settings
                                        have it (dimchop_settings.py); else absent
 "merged_onto": "trained",              weights that they were added to (unread.py), once exported
 "chopjax_version": …, "model": {"name": …, "revision": …},     what the run started from
 "shape_of": {"name": …, "revision": …, "num_layers": …, "kept_layers": […]},   of random weights in
                                        the shape of a model, whose; else absent
 "steps": …, "tokens": …, "chop_after_steps": …,
 "batch_size": …, "sequence_length": …, "mask_documents": …, "seed": …,
 "optimizer": {"name": …, "b1": …, "b2": …, "weight_decay": …, …},
 "learning_rate": {"schedule": …, "peak": …, "warmup_steps": …, "final_fraction": …,
                   "total_steps": …},
 "teacher": {"name": …, "revision": …, "layers": […],        which layer taught each; or null
             "logits": …, "temperature": …, "hidden": …, …},     weights, as the settings have them
 "dtype": …, "param_dtype": …, "tokenizer_fingerprint": …,
 "data": [{"name": …, "fingerprint": …, "share": …, "sources": […], …}, …],   token stores
 "held_out": {"window_loss": …, "tokens": …, "convention": …, "data": {…}}}   or null
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from chopjax.disk.files import read_json_object
from chopjax.errors import UserError

FULL = "full"  # the kind of training that changes all weights
ADAPTERS = "adapters"  # what is added to some matrices alone
SCHEDULE = "linear warm-up, then half a cosine down to final_fraction of the peak at total_steps"
MOST_SOURCES = 20  # that are named
_TEACHER = ("logits", "temperature", "hidden", "attention", "embedding", "mimic", "top_k")
_OPTIMIZER = ("name", "b1", "b2", "weight_decay", "clip_norm", "momentum_dtype", "z_loss")


def training_entry(workdir: Path, checkpoint: Path) -> dict[str, Any] | None:
    """What a checkpoint of a training run says of the run so far; None where it says nothing.

    Raises UserError where run.json is damaged.
    """
    path = checkpoint / "run.json"
    if not path.is_file():
        return None
    record = read_json_object(path)
    try:
        return _entry(record, _evaluation(workdir / "metrics.jsonl", record["step"]))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{path}: not a record that chopjax wrote ({type(error).__name__}: {error}); export an "
            "earlier checkpoint with --step"
        ) from None


def _entry(record: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> dict[str, Any]:
    config, origin = record["config"], record["origin"]
    data, optimizer = config["data"], config["optimizer"]
    stores = record.get("stores") or _bare_stores(record["fingerprints"])
    held_out = None
    if evaluation is not None:
        held_out = {
            "window_loss": evaluation["eval_loss"],
            "tokens": evaluation["eval_tokens"],
            "convention": window_convention(data["sequence_length"], data["mask_documents"]),
            "data": stores["held_out"] and _public(stores["held_out"]),
        }
    adapter = config.get("adapter") or {}  # older records have none
    kind = {"kind": ADAPTERS, "adapter": adapter} if adapter.get("rank") else {"kind": FULL}
    masks = {"masks": "fixed"} if config.get("masks") == "fixed" else {}
    dimchop = config.get("dimchop") or {}
    return {
        **kind,
        **masks,
        **({"dimchop": dimchop} if dimchop.get("final") else {}),
        "chopjax_version": record["chopjax_version"],
        "model": {"name": origin["name"], "revision": origin["revision"]},
        **({"shape_of": shape} if (shape := origin.get("shape_of")) else {}),
        "steps": record["step"],
        "tokens": record["tokens"],
        "chop_after_steps": origin["chop_after"] if origin["keep"] is not None else None,
        "batch_size": data["batch_size"],
        "sequence_length": data["sequence_length"],
        "mask_documents": data["mask_documents"],
        "seed": config["seed"],
        "optimizer": {name: optimizer[name] for name in _OPTIMIZER},
        "learning_rate": {
            "schedule": SCHEDULE,
            "peak": optimizer["peak_learning_rate"],
            "warmup_steps": optimizer["warmup_steps"],
            "final_fraction": optimizer["final_fraction"],
            "total_steps": config["total_steps"],
        },
        "teacher": _teacher(record),
        "dtype": config["compute"]["dtype"],
        "param_dtype": config["compute"]["param_dtype"],
        "tokenizer_fingerprint": record["fingerprints"]["tokenizer"],
        "data": [_public(store) for store in stores["train"]],
        "held_out": held_out,
    }


def _teacher(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """What else than the text was minimised; None in older records, too."""
    asked = record["config"].get("teacher") or {}
    if not (asked.get("model") or asked.get("top_k")):
        return None
    about: dict[str, Any] = {"name": None, "revision": None, "layers": None}
    if found := record.get("teacher"):
        layers = found["after"] or found["before"]
        name, revision = found["name"], found["revision"]
        about = {"name": name if revision else public_name(name), "revision": revision}
        about["layers"] = layers and list(layers)
    return about | {name: asked[name] for name in _TEACHER}


def window_convention(sequence_length: int, mask_documents: bool) -> str:
    """How a training run measures held-out text, in a sentence's middle."""
    sees = "its own document" if mask_documents else "all of its window"
    return (
        f"the text's tokens, documents joined, cut into windows of {sequence_length}; a token sees "
        f"{sees} before it and nothing of the window before; natural logarithm; mean over all "
        "predicted tokens"
    )


def _bare_stores(fingerprints: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run whose record does not name its stores yet."""
    pairs = zip(fingerprints["data"], fingerprints["shares"], strict=True)
    train = [{"name": None, "fingerprint": f, "share": s, "sources": []} for f, s in pairs]
    return {"train": train, "held_out": None}


def _public(store: Mapping[str, Any]) -> dict[str, Any]:
    """A store as others may read of it: of folders and files on this machine the last part."""
    sources = list(dict.fromkeys(map(public_name, store["sources"])))
    more = len(sources) - MOST_SOURCES
    public = {
        **store,
        "name": store["name"] and public_name(store["name"]),
        "sources": sources[:MOST_SOURCES] + ([f"… and {more} more"] if more > 0 else []),
    }
    if teacher := store.get("teacher"):
        name = teacher["name"]
        public["teacher"] = {
            **teacher,
            "name": name if teacher["revision"] else public_name(name),
        }
    return public


def public_name(name: str) -> str:
    """`hf:OWNER/NAME` for a file of a dataset of the hub, with its commit; URLs and `tfds:…` as
    they are; of a path the last part."""
    if match := re.match(r"hf://datasets/([^@/\s]+(?:/[^@/\s]+)?)@([^/\s]+)/", name):
        return f"hf:{match[1]}@{match[2]}"
    if "://" in name or name.startswith(("tfds:", "hf:")):
        return name
    return Path(name).name or name


def hub_datasets(entries: Iterable[Mapping[str, Any]]) -> list[str]:
    """The hub's datasets that training runs have read."""
    datasets = [
        source.removeprefix("hf:").partition("@")[0]
        for entry in entries
        for store in entry.get("data") or ()
        for source in store.get("sources") or ()
        if source.startswith("hf:")
    ]
    return sorted(set(datasets))


def _evaluation(metrics: Path, step: int) -> dict[str, Any] | None:
    """The line of metrics.jsonl with the held-out loss after this step."""
    if not metrics.is_file():
        return None
    evaluation = None
    with metrics.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if '"eval_loss"' not in line:
                continue
            try:
                row = json.loads(line)
            except ValueError:  # a kill cut it
                continue
            loss = row.get("eval_loss") if isinstance(row, dict) and "eval_tokens" in row else None
            if isinstance(loss, float) and math.isfinite(loss) and row.get("step") == step:
                evaluation = row
    return evaluation
