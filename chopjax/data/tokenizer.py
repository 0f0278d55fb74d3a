"""A model's tokenizer, with the ids that transformers gives, and a fingerprint of it.

transformers builds the tokenizer, because for some classes (LlamaTokenizer among them) it does not
take tokenizer.json as it stands, and its ids are those that every other program will feed the
model. What it built is kept without it: text is encoded by the `tokenizers` library alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Backend

from chopjax.checkpoint.assets import ASSETS, check_assets
from chopjax.checkpoint.describe import HUGGINGFACE
from chopjax.checkpoint.source import CONFIG, FOLDER_MARK
from chopjax.disk.files import expanded, folder_inside, read_json_object
from chopjax.errors import UserError, first_line
from chopjax.transformers_alone import auto_tokenizer

# One of these is in every folder that holds a tokenizer.
_MARKS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "*.tiktoken", "*.model")


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Text to token ids. Can be sent to other processes."""

    name: str  # as the user said it
    backend: Backend
    bos_id: int | None
    eos_id: int | None
    fingerprint: str  # sha256 over what decides ids
    vocab_size: int  # the largest id plus one, added tokens included
    split_special_tokens: bool  # whether text that spells "</s>" stays text

    def encode_batch(self, texts: list[str], add_special_tokens: bool = False) -> list[list[int]]:
        """Ids of each text. add_special_tokens: with those that the tokenizer puts around it."""
        # The flag does not travel to other processes with the backend.
        self.backend.encode_special_tokens = self.split_special_tokens
        encoded = self.backend.encode_batch_fast(texts, add_special_tokens=add_special_tokens)
        return [encoding.ids for encoding in encoded]

    def decode(self, ids: list[int]) -> str:
        """The text of some ids, special tokens included."""
        return self.backend.decode(ids, skip_special_tokens=False)


def check_ids(
    sequences: Iterable[Any], vocab_size: int, tokenizer: Callable[[], Tokenizer] | None
) -> None:
    """Raises UserError where a sequence of ids holds one for which the embedding table of
    vocab_size rows has none; a lookup would be clamped to another token's row.

    A tokenizer with more tokens than the table is no error as long as none of them occurs.
    tokenizer: gives the one that the ids are from, where it is known; called for the message alone.
    """
    largest = max((int(np.max(ids)) for ids in sequences if len(ids)), default=-1)
    if largest < vocab_size:
        return
    name, token = "", f"token {largest}"
    if tokenizer is not None:
        loaded = tokenizer()
        spelled = loaded.backend.id_to_token(largest)
        name, token = f"{loaded.name}: ", f"{token} ({spelled!r})" if spelled else token
    raise UserError(
        f"{name}the text has {token}, and the model's embedding table has {vocab_size} rows, for "
        f"0 to {vocab_size - 1}: the tokenizer has tokens that the model does not know. Use the "
        "tokenizer that belongs to the model, or a checkpoint whose table was enlarged for this one"
    )


def load_tokenizer(model: str | os.PathLike[str], revision: str | None = None) -> Tokenizer:
    """The tokenizer of a local folder (Hugging Face's or chopjax's own) or of a hub id.

    Raises UserError where there is none, or only one that needs code from its author.
    """
    name, folder = tokenizer_folder(model, revision)
    built = build(folder, name)
    backend = whole_text_backend(built)
    split_special_tokens = backend.encode_special_tokens
    bos_id, eos_id = built.bos_token_id, built.eos_token_id
    if bos_id is None and eos_id is None:
        bos_id, eos_id = _ids_in_config(folder / CONFIG)
    return Tokenizer(
        name=name,
        backend=backend,
        bos_id=bos_id,
        eos_id=eos_id,
        fingerprint=fingerprint(backend, split_special_tokens),
        vocab_size=1 + max(backend.get_vocab(with_added_tokens=True).values()),
        split_special_tokens=split_special_tokens,
    )


def tokenizer_folder(
    model: str | os.PathLike[str], revision: str | None = None
) -> tuple[str, Path]:
    """The model's name, and the folder on this machine that holds its tokenizer. Raises UserError
    as load_tokenizer."""
    name = os.fspath(model)
    folder = expanded(name)
    if not folder.is_dir():
        if name.count("/") > 1 or name.startswith((".", "~", "/")):
            raise UserError(f"{name}: no such folder")
        return name, _download(name, revision)
    if revision is not None:
        raise UserError(f"--revision is for hub ids; {name} is a local folder")
    if (folder / FOLDER_MARK).is_file():
        own = folder_inside(folder, HUGGINGFACE)
        if own is None:
            raise UserError(f"{name}: no folder {HUGGINGFACE}/ in it, which holds its tokenizer")
        return name, own
    return name, folder


def fingerprint(backend: Backend, split_special_tokens: bool = False) -> str:
    """sha256 over what decides the ids of a text, in a canonical spelling.

    Vocabulary, merges, normalizer, pre-tokenizer and added tokens count. Truncation, padding,
    post-processor and decoder do not: none of them has a say in encode_batch. Settings that are
    off are left out and merges are spelled as pairs, so that files of the same tokenizer from
    different library versions agree.
    """
    said = json.loads(backend.to_str())
    model = said["model"]
    vocab, merges = model.pop("vocab"), model.pop("merges", None)
    deciding = {
        "model": _without_defaults(model),
        "vocab": sorted(vocab.items()) if isinstance(vocab, dict) else vocab,
        "merges": [m.split(" ") if isinstance(m, str) else m for m in merges or []],
        "normalizer": _without_defaults(said["normalizer"]),
        "pre_tokenizer": _without_defaults(said["pre_tokenizer"]),
        "added_tokens": _without_defaults(sorted(said["added_tokens"], key=lambda t: t["id"])),
        "split_special_tokens": split_special_tokens,
    }
    spelled = json.dumps(deciding, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(spelled.encode()).hexdigest()


def _without_defaults(value: Any) -> Any:
    """Drop what is off or empty, and trim_offsets, which has no say in ids."""
    if isinstance(value, dict):
        kept = {k: _without_defaults(v) for k, v in value.items() if k != "trim_offsets"}
        off: tuple[Any, ...] = ("", [], {})
        return {k: v for k, v in kept.items() if v is not None and v is not False and v not in off}
    if isinstance(value, list):
        return [_without_defaults(item) for item in value]
    return value


def _download(name: str, revision: str | None) -> Path:
    """Tokenizer files and configuration of a hub id, in huggingface_hub's own cache."""
    import huggingface_hub

    from chopjax.checkpoint import hub_requests  # needed where the model is not here

    with hub_requests.users_errors(name):
        folder = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=list(ASSETS)
        )
    return Path(folder)


def build(folder: Path, name: str, **options: Any) -> Any:
    """transformers' tokenizer of a local folder. Code that lies in it is not run.

    options: for from_pretrained, such as add_bos_token.
    """
    auto = auto_tokenizer()
    if not any(path.is_file() for mark in _MARKS for path in folder.glob(mark)):
        raise UserError(f"{name}: no tokenizer there (none of {', '.join(_MARKS)})")
    check_assets(folder)
    try:
        built = auto.from_pretrained(
            str(folder.absolute()), trust_remote_code=False, local_files_only=True, **options
        )
    except Exception as error:  # whatever a damaged or unknown tokenizer makes of the libraries
        raise UserError(
            f"{name}: no tokenizer that transformers can load ({first_line(error)})"
        ) from error
    if not isinstance(getattr(built, "backend_tokenizer", None), Backend):
        raise UserError(
            f"{name}: {type(built).__name__} has no form that the tokenizers library can run; "
            "convert it to a tokenizer.json first"
        )
    return built


def whole_text_backend(built: Any) -> Backend:
    """The backend of transformers' tokenizer, which neither cuts nor pads: what tokenizer.json says
    of these two is not for us, and lm-evaluation-harness resets them, too."""
    backend: Backend = built.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = bool(getattr(built, "split_special_tokens", False))
    return backend


def _ids_in_config(path: Path) -> tuple[int | None, int | None]:
    """bos_token_id and eos_token_id of config.json; of a list, the first."""
    if not path.is_file():
        return None, None
    config = read_json_object(path)

    def first(key: str) -> int | None:
        value = config.get(key)
        value = value[0] if isinstance(value, list) and value else value
        return value if type(value) is int else None

    return first("bos_token_id"), first("eos_token_id")
