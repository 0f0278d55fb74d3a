"""What a model is and where it lies, without reading a weight. No jax.

A model is one of four things: a Hugging Face folder, a hub id, a folder that `chopjax import`
wrote, or the working directory of a training run. The last two are chopjax's own:

    FOLDER/chopjax_folder.json     names and types of the tensors: what export needs
    FOLDER/huggingface/            config.json, tokenizer files, chopjax.json, as they were found
    FOLDER/params/                 of an import: parameters (Orbax)
    FOLDER/checkpoints/STEP/       of a training run: what it trains and optimizer state (Orbax)
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chopjax.checkpoint.assets import copy_assets, write_config
from chopjax.checkpoint.card import write_record
from chopjax.checkpoint.compressed_tensors import without_codes
from chopjax.checkpoint.computed import translate
from chopjax.checkpoint.open import open_checkpoint, open_to_score
from chopjax.checkpoint.provenance import TRAINING, add_entry, read_provenance, record_of
from chopjax.checkpoint.safetensors_file import FLOATS
from chopjax.checkpoint.source import FOLDER_MARK, PICKLES, Checkpoint, read_config
from chopjax.checkpoint.training_record import training_entry
from chopjax.disk.files import expanded, folder_inside, inside, read_json_object
from chopjax.errors import UserError, decoded
from chopjax.keep import Keep
from chopjax.models.adapter_settings import AdapterSettings
from chopjax.models.config import ModelConfig
from chopjax.models.families.table import Family, Naming, bind

HUGGINGFACE = "huggingface"
PARAMS = "params"
CHECKPOINTS = "checkpoints"
# What a folder with weights of whatever kind has.
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.gguf", *PICKLES)
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class AdapterRun:
    """Weights of a training run that moved adapters alone (adapter_run.py reads them)."""

    path: Path  # the Orbax folder, with the adapters
    base: Description  # what they stand on, with all of its layers
    keep: Keep | None  # those that the run has; None: all
    settings: AdapterSettings
    fingerprint: dict[str, Any]  # of the base, as the run read it (identity.py)
    masked: bool = False  # adapters add nothing where the base is zero


@dataclasses.dataclass(frozen=True)
class Description:
    """A model at rest."""

    name: str  # as the user said it
    source: str  # the Hugging Face checkpoint: `name`, or what an import or run was made from
    revision: str | None  # the commit, where the source is a hub id
    family: Family
    config: ModelConfig
    raw_config: dict[str, Any]
    folder: Path  # where config.json and the tokenizer files are
    provenance: dict[str, Any] | None  # chopjax.json; of a training run, with that run in it
    naming: Naming
    dtypes: dict[str, str] | None  # tensor → its type as found; None after training
    metadata: dict[str, str]  # of the safetensors files
    weights: Checkpoint | Path | AdapterRun  # a path: the Orbax folder, of chopjax's own


def describe(
    model: str, revision: str | None = None, step: int | None = None, quantized: bool = False
) -> Description:
    """Look at a model. Raises UserError with everything that is wrong with it.

    step: which checkpoint of a training run, the latest by default. quantized: of what `chopjax
    quantize` wrote the codes, and not the numbers that they stand for.
    """
    folder = expanded(model)
    if (folder / FOLDER_MARK).is_file():
        if revision is not None:
            raise UserError(f"--revision is for hub ids; {model} is a local folder")
        return _describe_own(folder, model, step)
    if step is not None:
        raise UserError(f"--step is for the working directory of a training run; {model} is none")
    opened = open_to_score if quantized else open_checkpoint
    return of_checkpoint(opened(model, revision))


def of_checkpoint(checkpoint: Checkpoint) -> Description:
    """The same of one that is open."""
    return Description(
        name=checkpoint.name,
        source=checkpoint.name,
        revision=checkpoint.revision,
        family=checkpoint.family,
        config=checkpoint.config,
        raw_config=checkpoint.raw_config,
        folder=checkpoint.folder,
        provenance=record_of(checkpoint),
        naming=checkpoint.match.naming,
        dtypes={b.source: checkpoint.tensors[b.source].dtype for b in checkpoint.match.bindings},
        metadata=checkpoint.metadata,
        weights=checkpoint,
    )


def keep_layers(description: Description, keep: tuple[int, ...]) -> Description:
    """The description of the kept layers alone. Raises UserError for layers that are not there."""
    num_layers = description.config.num_layers
    if not keep or list(keep) != sorted(set(keep)) or not 0 <= keep[0] <= keep[-1] < num_layers:
        raise UserError(
            f"{description.name}: layers to keep must ascend and lie in 0..{num_layers - 1}, "
            f"not {keep}"
        )
    config = description.config.keep(keep)
    bound = bind(description.family, description.config, description.naming)
    old = [b.source for b in bound if b.layer is None or b.layer in keep]
    new = [b.source for b in bind(description.family, config, description.naming)]
    dtypes = description.dtypes
    if dtypes is not None:
        dtypes = {n: dtypes[o] for o, n in zip(old, new, strict=True)}
    return dataclasses.replace(description, config=config, dtypes=dtypes)


def _describe_own(folder: Path, name: str, step: int | None) -> Description:
    assets = folder_inside(folder, HUGGINGFACE)
    if assets is None:
        raise UserError(f"{name}: no folder {HUGGINGFACE}/ in it, which holds its config.json")
    raw_config = read_config(assets)
    family, config = translate(raw_config)
    record = _read_record(folder, family)
    provenance = read_provenance(assets)
    adapters: AdapterRun | None = None
    checkpoints, weights = folder_inside(folder, CHECKPOINTS), folder_inside(folder, PARAMS)
    if checkpoints is not None:
        weights = _step_folder(checkpoints, name, step)
        if about := training_entry(folder, weights):
            start = record["source"], record["revision"]
            provenance = add_entry(TRAINING, provenance, *start, config.num_layers, about)
            adapters = _adapter_run(name, weights)
    elif step is not None:
        raise UserError(f"--step is for training runs; {name} was written by `chopjax import`")
    elif weights is None:
        raise UserError(f"{name}: neither {PARAMS}/ nor {CHECKPOINTS}/ is there; no weights")
    return Description(
        name=name,
        family=family,
        config=config,
        raw_config=raw_config,
        folder=assets,
        provenance=provenance,
        weights=adapters or weights,
        **record | ({"dtypes": _kept(adapters).dtypes} if adapters else {}),
    )


def _adapter_run(name: str, path: Path) -> AdapterRun | None:
    """What run.json says of adapters and their base; None where all weights were trained.

    Raises UserError where the base cannot be opened."""
    record = read_json_object(path / "run.json")
    try:
        settings = record["config"].get("adapter", {})
        if not settings.get("rank"):
            return None
        about = record["base"]
        model, revision, step = str(about["model"]), about["revision"], about.get("step")
        fingerprint = dict(about["fingerprint"])
        chopped = record["step"] >= record["origin"]["chop_after"]
        keep = tuple(record["kept_layers"]) if chopped and record["kept_layers"] else None
        adapters = AdapterSettings(**settings)
        masked = record["config"].get("masks") == "fixed"
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{path / 'run.json'}: not a record that chopjax wrote ({type(error).__name__}: "
            f"{error}); export an earlier checkpoint with --step"
        ) from None
    try:
        base = describe(model, revision, step)
    except UserError as error:
        raise UserError(
            f"{name}: its checkpoints hold adapters alone, and what they stand on cannot be "
            f"opened: {error}"
        ) from error
    return AdapterRun(path, base, keep, adapters, fingerprint, masked)


def _kept(run: AdapterRun) -> Description:
    """The base with the run's layers."""
    return run.base if run.keep is None else keep_layers(run.base, run.keep)


def _step_folder(checkpoints: Path, name: str, step: int | None) -> Path:
    """A step's folder bears its number only once it is complete."""
    names = [p.name for p in checkpoints.iterdir() if re.fullmatch("[0-9]{1,18}", p.name)]
    steps = sorted(int(name) for name in names if folder_inside(checkpoints, name))
    if not steps:
        raise UserError(f"{name}: the training run has not saved a checkpoint yet")
    if step is not None and step not in steps:
        raise UserError(
            f"{name}: no checkpoint of step {step}; there are {', '.join(map(str, steps[-12:]))}"
        )
    return checkpoints / str(steps[-1] if step is None else step)


def write_own(
    folder: Path,
    assets: Path,
    raw_config: Mapping[str, Any],
    naming: Naming,
    dtypes: Mapping[str, str] | None,
    metadata: Mapping[str, str],
    provenance: Mapping[str, Any] | None,
    source: str,
    revision: str | None,
) -> None:
    """Write chopjax_folder.json and huggingface/ of a folder of ours; the weights come after.

    assets: where the tokenizer files and config.json are; config.json stays byte for byte as it
    is unless raw_config differs from it. dtypes: None after training. The rest is as in
    Description.
    """
    (folder / HUGGINGFACE).mkdir()
    copy_assets(assets, folder / HUGGINGFACE)
    write_config(folder / HUGGINGFACE, raw_config)
    write_record(folder / HUGGINGFACE, provenance)
    record = {
        "format": _FORMAT,
        "source": decoded(source),
        "revision": revision,
        "naming": dataclasses.asdict(naming),
        "dtypes": None if dtypes is None else dict(dtypes),
        "metadata": dict(metadata),
    }
    (folder / FOLDER_MARK).write_text(json.dumps(record, indent=1) + "\n")


def _read_record(folder: Path, family: Family) -> dict[str, Any]:
    """The fields of a Description that chopjax_folder.json holds."""
    path = inside(folder, FOLDER_MARK)
    assert path is not None  # the caller found it
    record = read_json_object(path)
    try:
        if record["format"] != _FORMAT:
            raise ValueError(f"format {record['format']!r}; this chopjax reads {_FORMAT}")
        prefix, embedding_names = record["naming"]["prefix"], record["naming"]["embedding_names"]
        dtypes, metadata = record["dtypes"], dict(record["metadata"])
        if dtypes is not None and not set(dtypes.values()) <= set(FLOATS):
            raise ValueError("dtypes that no parameter has")
        head = record["naming"].get("head", "lm_head")  # older records do not say it
        tables = {family.embedding_row.source.replace("{p}", str(prefix))}
        tables |= {f"{name}.weight" for name in family.heads}
        names = set(embedding_names)
        if prefix not in family.prefixes or head not in family.heads:
            raise ValueError("names that no tensor has")
        if not names or not names <= tables:
            raise ValueError("names that no tensor has")
        if not all(isinstance(text, str) for text in (*metadata.values(), record["source"])):
            raise ValueError("metadata or source that is not text")
        if not isinstance(record["revision"], str | None):
            raise ValueError("a revision that is not text")
        return {
            "source": str(record["source"]),
            "revision": record["revision"],
            "naming": Naming(str(prefix), tuple(map(str, embedding_names)), head),
            "dtypes": dtypes,
            "metadata": metadata,
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: not a record that chopjax wrote ({error})") from None


def local_config(model: str) -> dict[str, Any] | None:
    """config.json of a model on this machine, by its own path or that of its folder; None where
    there is neither: a hub id. Of what `chopjax quantize` wrote that of the same model in floats.

    Raises UserError for a folder without one, and where it is not JSON.
    """
    path = expanded(model)
    if is_config(path):
        return without_codes(read_json_object(path))
    if not path.is_dir():
        return None
    own = path / HUGGINGFACE if (path / FOLDER_MARK).is_file() else path
    return without_codes(read_config(own))


def local_provenance(model: str) -> dict[str, Any] | None:
    """chopjax.json of a model on this machine; None where there is none, and for a hub id."""
    folder = expanded(model)
    if not folder.is_dir():
        return None
    return read_provenance(folder / HUGGINGFACE if (folder / FOLDER_MARK).is_file() else folder)


def step_of(description: Description) -> int | None:
    """Of which step the checkpoint of a training run is; None for what is none."""
    weights = description.weights
    path = weights.path if isinstance(weights, AdapterRun) else weights
    if isinstance(path, Checkpoint) or path.parent.name != CHECKPOINTS:
        return None
    return int(path.name)


def places_of(description: Description) -> tuple[Path, ...]:
    """The folders on this machine that the weights are read from, those under adapters included."""
    weights = description.weights
    if isinstance(weights, AdapterRun):
        return (weights.path, *places_of(weights.base))
    return (weights.folder,) if isinstance(weights, Checkpoint) else (weights,)


def is_own(model: str) -> bool:
    """Whether this is a folder that `chopjax import` or a training run made."""
    return (expanded(model) / FOLDER_MARK).is_file()


def is_config(path: Path) -> bool:
    """Whether this is the path of a configuration itself."""
    return path.suffix == ".json" and path.is_file()


def has_weights(folder: Path) -> bool:
    """Whether anything in it looks like a checkpoint's weights, or chopjax made it."""
    return (folder / FOLDER_MARK).exists() or any(any(folder.glob(pattern)) for pattern in WEIGHTS)
