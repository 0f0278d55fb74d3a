"""What of a training run can be known before it starts: the recipe, the model, the token stores.

No device is touched. "elsewhere": the run is to start on other machines (tpu_scripts/ asks before
anything is paid for); a local path that is not here is told then, and no mistake.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from huggingface_hub import get_token
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled
from ml_collections import ConfigDict

from chopjax.checkpoint.describe import Description
from chopjax.checkpoint.published import CONFIGS, GATED
from chopjax.data.store import TokenStore, check_fits
from chopjax.data.tokenizer import load_tokenizer
from chopjax.disk.files import expanded
from chopjax.errors import UserError, listing
from chopjax.models import families
from chopjax.models.config import ModelConfig
from chopjax.progress import say
from chopjax.train.evaluation import held_out_batches
from chopjax.train.feed import training_batches
from chopjax.train.origin import Origin, find_origin
from chopjax.train.settings import Settings, read
from chopjax.train.teacher import check_teacher, find_teacher

Where = Literal["here", "elsewhere"]


@dataclasses.dataclass(frozen=True)
class Parent:
    """The model that training begins with."""

    config: ModelConfig
    layers: str  # as a sentence has it
    tokenizer: Path | None  # its folder


def check(config: ConfigDict, workdir: str, where: Where) -> None:
    """Say what the run will be, and what could not be looked at.

    Raises UserError with everything that is wrong.
    """
    settings = read(config)
    problems: list[str] = []
    notes: list[str] = []
    if "://" in workdir:
        problems.append(f"--workdir {workdir}: a URL; a folder that every host mounts is needed")
    parent = _parent(settings, where, problems, notes)
    if parent is not None:
        length, positions = settings.data.sequence_length, parent.config.max_positions
        if length > positions:
            problems.append(
                f"data.sequence_length {length}: the model has only {positions} positions"
            )
    tokens = _stores(settings, where, parent, problems, notes)
    if problems:
        raise UserError(f"training cannot start like this:\n{listing(problems)}")
    data, steps = settings.data, settings.total_steps
    of_them = "" if tokens is None else f", the stores hold {tokens:,}"
    model = settings.model or "random weights"
    if settings.from_scratch:
        model = f"random weights in the shape of {model}"
    say(f"model: {model}{f', {parent.layers}' if parent else ''}")
    say(
        f"training: {steps:,} steps of {data.batch_size:,} x {data.sequence_length:,} tokens, "
        f"{steps * data.batch_size * data.sequence_length:,} in all{of_them}"
    )
    for note in notes:
        say(f"not checked: {note}")


def _parent(
    settings: Settings, where: Where, problems: list[str], notes: list[str]
) -> Parent | None:
    """None where it is wrong, or elsewhere."""
    name = settings.model
    if where == "elsewhere" and _elsewhere(name):
        notes.append(f"model {name}: not on this machine; every host of the run must have it")
        return None
    try:
        origin, description = find_origin(settings)
    except UserError as error:
        if not _unreachable(error) or where == "here":
            problems.append(str(error))
            return None
        notes.append(f"model {name}: the hub cannot be asked from here")
        if name not in CONFIGS:
            return None
        if name in GATED and get_token() is None:
            problems.append(
                f"model {name} is gated, and there is no token: log in with `hf auth login` or set "
                "HF_TOKEN"
            )
        known = dataclasses.replace(settings, model="", scratch=CONFIGS[name])
        try:
            origin, description = find_origin(known)
        except UserError as fault:
            problems.append(str(fault))
            return None
    config = origin.config_at(0)
    layers = f"{families.translate(origin.raw_config)[1].num_layers} layers"
    if origin.keep is not None:
        layers = f"{len(origin.keep)} of {layers}"
        layers += f", all of them for {origin.chop_after} steps" if origin.chop_after else ""
    tokenizer = description.folder if description else None
    if settings.scratch:
        tokenizer = expanded(settings.tokenizer)
        if not tokenizer.is_dir():
            fault_or_note = problems if where == "here" else notes
            fault_or_note.append(f"tokenizer: {tokenizer} is not a folder here")
            tokenizer = None
    if settings.teacher.model:
        _check_teacher(settings, origin, description, tokenizer, where, problems, notes)
    return Parent(config, layers, tokenizer)


def _check_teacher(
    settings: Settings,
    origin: Origin,
    student: Description | None,
    tokenizer: Path | None,
    where: Where,
    problems: list[str],
    notes: list[str],
) -> None:
    name = settings.teacher.model
    if where == "elsewhere" and _elsewhere(name):
        notes.append(f"teacher.model {name}: not on this machine; every host must have it")
        return
    try:
        teacher, found = find_teacher(settings, origin, student.provenance if student else None)
        if tokenizer is not None:
            check_teacher(found, origin.config_at(0), tokenizer, settings)
        notes += [] if tokenizer else [f"teacher.model {name}: whether its tokens are the same"]
        say(f"teacher: {teacher.name}, {teacher.config.num_layers} layers")
    except UserError as error:
        unknown = where == "elsewhere" and _unreachable(error.__cause__ or error)
        (notes if unknown else problems).append(str(error))


def _unreachable(error: BaseException) -> bool:
    """Whether the hub could not be asked."""
    cause = error.__cause__
    asked = isinstance(cause, HTTPError | OfflineModeIsEnabled)
    return asked and getattr(cause, "response", None) is None


def _stores(
    settings: Settings,
    where: Where,
    parent: Parent | None,
    problems: list[str],
    notes: list[str],
) -> int | None:
    """Tokens to train on, None where not all stores are to be seen."""

    def training() -> list[TokenStore]:
        top_k = settings.teacher.top_k
        return list(training_batches(settings.data, settings.seed, top_k).stores)

    def held_out() -> list[TokenStore]:
        batches = held_out_batches(settings)
        return [batches.store] if batches is not None else []

    tokens = None
    fields: dict[str, tuple[str, Callable[[], list[TokenStore]]]] = {
        "data.train": (settings.data.train, training),
        "data.evaluation": (settings.data.evaluation, held_out),
    }
    for field, (folders, open_all) in fields.items():
        absent = [f for f in _folders(folders) if _elsewhere(f)]
        if where == "elsewhere" and absent:
            notes.append(
                f"{field} {', '.join(absent)}: not on this machine; every host of the run must "
                "have it (`chopjax prepare` makes it)"
            )
            continue
        try:
            stores = open_all()
            for store in stores:
                _check_fits(store, parent)
        except UserError as error:
            # A bucket may be open to those machines and not to this one.
            may_be_there = where == "elsewhere" and "://" in folders
            (notes if may_be_there else problems).append(f"{field}: {error}")
            continue
        if field == "data.train":
            tokens = sum(store.num_tokens for store in stores)
    return tokens


def _check_fits(store: TokenStore, parent: Parent | None) -> None:
    if parent is not None:
        fingerprint = load_tokenizer(parent.tokenizer).fingerprint if parent.tokenizer else None
        check_fits(store, fingerprint, parent.config.vocab_size)


def _folders(stores: str) -> list[str]:
    """Of "FOLDER=WEIGHT,FOLDER=WEIGHT" (train/feed.py), for messages."""
    if "=" not in stores:
        return [stores] if stores else []
    return [part.rpartition("=")[0].strip() for part in stores.split(",")]


def _elsewhere(path: str) -> bool:
    """Whether it is the path of a folder, no URL nor hub id, that this machine does not have."""
    return path[:1] in ("/", "~", ".") and not expanded(path).exists()
