"""Opening a Hugging Face checkpoint: its configuration and where every tensor's bytes are.

Nothing but JSON is read here; weights are mapped into memory when asked for. No jax.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Generic, TypeVar

import numpy as np

from chopjax.checkpoint import structures
from chopjax.checkpoint.computed import translate
from chopjax.checkpoint.safetensors_file import FLOATS, Header, TensorInfo, open_header
from chopjax.checkpoint.structure import Structure
from chopjax.disk.files import inside, read_json_object
from chopjax.errors import UserError, cut, listing
from chopjax.models.config import ModelConfig
from chopjax.models.families.table import Family, Match, match
from chopjax.models.formats import Kind
from chopjax.progress import say

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
FOLDER_MARK = "chopjax_folder.json"  # names a folder that `chopjax import` or `train` wrote

PICKLES = ("*.bin", "*.pth", "*.pt", "*.ckpt", "*.pkl", "*.pickle")
PICKLE_ADVICE = (
    "Pickled weights are refused: reading a pickle runs whatever code its author put into it.\n"
    "If you trust the author, convert it where torch is installed:\n"
    '  python -c "from transformers import AutoModelForCausalLM as M; '
    "M.from_pretrained('FOLDER').save_pretrained('OUT')\"\n"
    "and use OUT; copy the tokenizer files there, too. The hub may hold a conversion already, as a "
    "pull request: --revision refs/pr/N"
)


GGUF_ADVICE = (
    "GGUF, llama.cpp's format, most often quantized. Take the Hugging Face checkpoint that it was "
    "made from, chop that, and convert the result with llama.cpp's convert_hf_to_gguf.py"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Files:
    """A Hugging Face checkpoint as far as a chop needs to know it: which tensors are which layer's.

    None of them is read yet.
    """

    name: str  # as the user said it
    folder: Path
    raw_config: dict[str, Any]
    structure: Structure
    num_layers: int
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]  # of the safetensors files
    revision: str | None = None
    fetcher: Callable[[Iterable[str]], None] | None = None
    why: str = ""  # what keeps chopjax from computing with it
    notes: tuple[str, ...] = ()  # what else whoever chops it should know

    def fetch(self, names: Iterable[str]) -> None:
        """Have these tensors' bytes on this machine. Call it before `array`."""
        if self.fetcher:
            self.fetcher(names)

    def array(self, name: str) -> np.ndarray:
        """A read-only view of the tensor in its file; bytes are read as they are touched."""
        return self.tensors[name].read()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint(Files):
    """A Hugging Face checkpoint that chopjax computes with, every tensor accounted for."""

    family: Family
    config: ModelConfig
    match: Match
    decoded: Kind | None = None  # the format whose codes are read here as the numbers they mean


F = TypeVar("F", bound=Files)


@dataclasses.dataclass(frozen=True)
class Found:
    """What a folder or a repository of the hub holds, before anything is made of it."""

    name: str
    folder: Path
    raw_config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    revision: str | None = None
    fetcher: Callable[[Iterable[str]], None] | None = None


@dataclasses.dataclass(frozen=True)
class Opening(Generic[F]):
    """How a checkpoint is looked at: to compute with it, or to chop it.

    check: of config.json alone, before weights are looked for; raises UserError.
    """

    check: Callable[[dict[str, Any]], object]
    assemble: Callable[[Found], F]


def open_folder(folder: Path, name: str, opening: Opening[F]) -> F:
    """Open a local Hugging Face checkpoint."""
    if (folder / FOLDER_MARK).is_file():
        raise UserError(
            f"{name} is chopjax's own folder; write a Hugging Face checkpoint first:\n"
            f"  chopjax export {name} OUT"
        )
    raw_config = read_config(folder)
    opening.check(raw_config)  # another kind of model says more than what files it lacks
    tensors, metadata = _read_headers(folder)
    return opening.assemble(Found(name, folder, raw_config, tensors, metadata))


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a folder."""
    path = inside(folder, CONFIG)
    if path is not None:
        return read_json_object(path)
    names = sorted(p.name for p in folder.iterdir())
    if advice := _other_kind(folder, names):
        raise UserError(f"{folder}: {advice}")
    shown = ", ".join(cut(name, 60) for name in names[:12])
    raise UserError(
        f"{folder}: no config.json, so this is not a Hugging Face checkpoint; it holds "
        f"{shown or 'nothing'}"
    )


def _other_kind(folder: Path, names: list[str]) -> str | None:
    """What a folder without config.json, or without weights, holds instead, and the way out."""
    if "adapter_config.json" in names:
        return _adapter_advice(folder)
    if any(name.endswith(".gguf") for name in names):
        return GGUF_ADVICE
    if "model_index.json" in names:
        return "a pipeline of diffusers, not a language model"
    if "params.json" in names and any(name.startswith("consolidated.") for name in names):
        return (
            "Meta's own format (params.json, consolidated.*); take the model's Hugging Face "
            "checkpoint, or convert it with transformers' convert_llama_weights_to_hf.py"
        )
    inner = [name for name in names[:99] if (folder / name / CONFIG).is_file()]
    if inner:
        return f"no config.json here, but in {cut(inner[0], 60)}/: give that folder"
    return None


def _adapter_advice(folder: Path) -> str:
    """A LoRA adapter is a difference to a model, which it names; virtual tokens are none."""
    path = inside(folder, "adapter_config.json")
    raw = read_json_object(path) if path else {}
    base = raw.get("base_model_name_or_path")
    name = cut(base, 120) if isinstance(base, str) and base else "BASE"
    if raw.get("peft_type") in ("PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"):
        return f"virtual tokens that peft puts before a prompt, and no weights; give {name} itself"
    return (
        "an adapter (LoRA), which is a difference to a model and not a model. Merge it first, "
        "where torch and peft are installed:\n"
        '  python -c "from peft import AutoPeftModelForCausalLM as M; '
        "M.from_pretrained('FOLDER').merge_and_unload().save_pretrained('OUT')\"\n"
        f"and use OUT, with the tokenizer files of {name}; or give {name} itself"
    )


def assemble(found: Found) -> Checkpoint:
    """Check tensors against config.json and put the Checkpoint together."""
    name, tensors = found.name, found.tensors
    family, config = translate(found.raw_config)
    matched = match(family, config, {k: t.shape for k, t in tensors.items()}, name)
    problems = [
        f"{b.source} is {tensors[b.source].dtype}"
        for b in matched.bindings
        if tensors[b.source].dtype not in FLOATS
    ]
    if problems:
        raise UserError(
            f"{name}: weights must be floating point ({', '.join(FLOATS)}), or as `chopjax "
            f"quantize` writes them:\n{listing(problems)}"
        )
    return Checkpoint(
        **vars(found),
        structure=structures.of_family(family),
        num_layers=config.num_layers,
        family=family,
        config=config,
        match=matched,
    )


def _read_headers(folder: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """All tensors of a folder, from the single file or from the shards that the index names.

    With both present the single file wins, as it does in transformers.
    """
    single, index = inside(folder, SINGLE), inside(folder, INDEX)
    if single:
        if index and set(read_weight_map(index).values()) != {SINGLE}:
            say(f"note: {folder} holds {SINGLE} and an index of other files; {SINGLE} is used")
        header = open_header(single)
        return header.tensors, header.metadata
    if index is None:
        raise no_weights(folder, str(folder), [p.name for p in folder.iterdir()])
    weight_map = read_weight_map(index)
    headers: dict[str, Header] = {}
    missing_files = []
    for shard in sorted(set(weight_map.values())):
        path = inside(folder, shard)
        if path is None:
            missing_files.append(f"missing file: {shard}")
        else:
            headers[shard] = open_header(path)
    return join_shards(weight_map, headers, index, missing_files)


def read_weight_map(index: Path) -> dict[str, str]:
    """Tensor name → file name, as an index says it."""
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(f, str) for f in weight_map.values()):
        raise UserError(f"{index}: weight_map must be an object of tensor name → file name")
    if not weight_map:
        raise UserError(f"{index}: weight_map is empty")
    return weight_map


def join_shards(
    weight_map: Mapping[str, str],
    headers: Mapping[str, Header],
    index: Path,
    problems: Iterable[str] = (),
) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The shards' tensors as one dict; the index and the headers must agree on every name."""
    problems = list(problems)
    tensors: dict[str, TensorInfo] = {}
    metadata: dict[str, str] = {}
    for shard, header in headers.items():
        metadata |= header.metadata
        for name, tensor in header.tensors.items():
            if name in tensors:
                problems.append(f"duplicate: {name} in {tensors[name].file.name} and {shard}")
            elif name not in weight_map:
                problems.append(f"unknown: {name} in {shard}, not in the index")
            tensors[name] = tensor
    for name, shard in weight_map.items():
        if shard in headers and name not in headers[shard].tensors:
            problems.append(f"missing: {name}, which the index places in {shard}")
    if problems:
        raise UserError(f"{index}: the index and its files disagree:\n{listing(problems)}")
    return tensors, metadata


def no_weights(folder: Path, name: str, files: Iterable[str]) -> UserError:
    """What to do about a model without weights: of a folder, or of a repository with `files`."""
    files = sorted(files)
    if advice := _other_kind(folder, files):
        return UserError(f"{name}: no weights of a whole model, but {advice}")
    pickles = [f for f in files if any(PurePosixPath(f).match(p) for p in PICKLES)]
    if pickles:
        names = ", ".join(pickles[:4]) + (", …" if len(pickles) > 4 else "")
        return UserError(f"{name}: no safetensors, only {names}.\n{PICKLE_ADVICE}")
    others = [f for f in files if f.endswith(".safetensors") and f != SINGLE]
    if others:
        return UserError(
            f"{name}: neither {SINGLE} nor {INDEX}, only {', '.join(others[:4])}; "
            "a shard's index is missing, or the file has another name than transformers gives it"
        )
    return UserError(f"{name}: no weights; {SINGLE} or {INDEX} with its shards is needed")
