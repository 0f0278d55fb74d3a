"""Which model something was measured on, told by content. No jax.

A fingerprint does not read all of it. It has five parts, each of which may be unknown (None):

    commit    of the hub, where the model came from there
    config    sha256 of what config.json says that the model computes with
    tensors   sha256 of the names, types and shapes of all tensors
    sample    sha256 of SAMPLE bytes at the start, the middle and the end of every tensor
    files     of a folder of chopjax's own, sha256 of its manifest, which has a digest of every
              file; of a run with adapters also of what they stand on

The sample is one: weights that differ elsewhere alone are taken for the same. Training changes all
of them, so that a model and its fine-tuned sibling are told apart.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chopjax.checkpoint.assets import CARD, PARENT_CARD, assets
from chopjax.checkpoint.describe import AdapterRun, Description
from chopjax.checkpoint.manifest import MANIFEST
from chopjax.checkpoint.packed import Unpacked
from chopjax.checkpoint.provenance import PROVENANCE
from chopjax.checkpoint.safetensors_file import TensorInfo
from chopjax.checkpoint.source import Checkpoint
from chopjax.disk.hashes import file_hashes

SAMPLE = 4096

# Ride along with a model and change no number.
_INERT = ("LICENSE", "NOTICE", "USE_POLICY", CARD, PARENT_CARD, PROVENANCE)
# What config.json says that has no say in what a forward pass computes.
_IDLE = ("transformers_version", "architectures", "torch_dtype", "dtype", "use_cache")


def model_files(description: Description) -> dict[str, Path]:
    """Name → place of every file that a model's numbers depend on: weights, config.json,
    generation_config.json, the tokenizer's files. For hashes of all content."""
    weights = description.weights
    if isinstance(weights, Checkpoint):
        files = {tensor.file for tensor in weights.tensors.values()}
        named = {path.name: path for path in sorted(files)}
    elif isinstance(weights, AdapterRun):
        own = {f"adapters/{name}": path for name, path in _files_below(weights.path).items()}
        named = own | {f"base/{n}": path for n, path in model_files(weights.base).items()}
    else:
        named = _files_below(weights)
    riding = [name for name in assets(description.folder) if not Path(name).name.startswith(_INERT)]
    return named | {name: description.folder / name for name in riding}


def model_hashes(description: Description) -> dict[str, str]:
    """Name → sha256 of model_files, whole."""
    named = model_files(description)
    hashes = file_hashes(named.values())
    return {name: hashes[path] for name, path in named.items()}


def of_description(description: Description) -> dict[str, str | None]:
    """The fingerprint of any model."""
    weights = description.weights
    if isinstance(weights, Checkpoint):
        return fingerprint(description.raw_config, weights.tensors, weights.revision)
    if isinstance(weights, AdapterRun):
        both = [_manifest(weights.path), of_description(weights.base)]
        files: str | None = _sha256(json.dumps(both, sort_keys=True))
    else:
        files = _manifest(weights)
    return fingerprint(description.raw_config, None) | {"files": files}


def _manifest(folder: Path) -> str | None:
    try:
        return _sha256((folder / MANIFEST).read_text())
    except OSError:
        return None


def _files_below(folder: Path) -> dict[str, Path]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in files}


def fingerprint(
    raw_config: Mapping[str, Any],
    tensors: Mapping[str, TensorInfo] | None,
    commit: str | None = None,
) -> dict[str, str | None]:
    """tensors: of a Hugging Face checkpoint; None for a folder of chopjax's own. Those of a hub
    model that are not on this machine are not downloaded for it."""
    config = {
        key: value
        for key, value in raw_config.items()
        if not (key.startswith("_") or key.endswith("_token_id") or key in _IDLE)
    }
    spelled = json.dumps(config, sort_keys=True)
    about = None
    if tensors is not None:
        listed = sorted((t.name, t.dtype, t.shape) for t in tensors.values())
        about = _sha256(json.dumps(listed))
    return {
        "commit": commit,
        "config": _sha256(spelled),
        "tensors": about,
        "sample": _sample(tensors) if tensors is not None else None,
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What tells two models apart, in words; nothing where they are the same as far as known.

    The same commit is the same model, whatever else is known of it."""
    if before.get("commit") and before.get("commit") == now.get("commit"):
        return []
    names = {
        "config": "config.json",
        "tensors": "the names, types or shapes of tensors",
        "sample": "the weights",
        "files": "the weights",
    }
    return [
        words
        for part, words in names.items()
        if before.get(part) and now.get(part) and before[part] != now[part]
    ]


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The same for who must be sure: another commit is another model unless the weights of both are
    known."""
    commits = before.get("commit"), now.get("commit")
    if all(commits) and commits[0] != commits[1] and not (before["sample"] and now["sample"]):
        return [f"the commit, which was {commits[0]} and is {commits[1]}"]
    return differences(before, now)


def _sample(tensors: Mapping[str, TensorInfo]) -> str | None:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        if isinstance(tensor, Unpacked):  # its codes tell it apart
            tensor = tensor.packed
        try:
            with tensor.open() as file:
                for place in (0, (tensor.nbytes - SAMPLE) // 2, tensor.nbytes - SAMPLE):
                    file.seek(tensor.start + max(place, 0))
                    digest.update(file.read(min(SAMPLE, tensor.nbytes)))
        except RuntimeError:  # of the hub, and not downloaded
            return None
        digest.update(f"{name} {tensor.nbytes} ".encode())
    return digest.hexdigest()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
