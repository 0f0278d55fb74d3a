"""Files that ride along with the weights: configuration, tokenizer, licence. No jax.

Only files that we know by name are copied, so that neither code nor pickles come along.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from chopjax.checkpoint.provenance import PROVENANCE
from chopjax.checkpoint.source import CONFIG
from chopjax.disk.files import LFS_ADVICE, LFS_POINTER, inside, read_json_object
from chopjax.errors import UserError

CARD = "README.md"
PARENT_CARD = "PARENT_README.md"  # the parent's, beside the one that chopjax writes

# Files in which some tools say how the weights are quantized, beside or in place of config.json.
SIDE_FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")
ASSETS = (
    CONFIG,
    *SIDE_FILES,
    PROVENANCE,
    CARD,
    PARENT_CARD,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "*.tiktoken",
    "chat_template.json",
    "preprocessor_config.json",  # of pictures, and the two that follow
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template*.jinja",
    "additional_chat_templates/*.jinja",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)


def is_asset(name: str) -> bool:
    """Whether the file of this path (with `/`, relative to the folder) rides along."""
    return any(
        fnmatch(name, pattern) and name.count("/") == pattern.count("/") for pattern in ASSETS
    )


def assets(folder: Path) -> list[str]:
    """Names of the files of a folder that ride along."""
    return sorted(
        path.relative_to(folder).as_posix()
        for pattern in ASSETS
        for path in folder.glob(pattern)
        if path.is_file()
    )


def check_assets(folder: Path) -> None:
    """Raise UserError for a link that leads out of the folder, and for a pointer of git-LFS."""
    for name in assets(folder):
        source = inside(folder, name)
        if source is not None:
            with source.open("rb") as file:
                if file.read(len(LFS_POINTER)) == LFS_POINTER:
                    raise UserError(f"{source}: {LFS_ADVICE}")


def copy_assets(folder: Path, out: Path) -> None:
    """Copy them byte for byte, after `check_assets`."""
    check_assets(folder)
    for name in assets(folder):
        source = inside(folder, name)
        if source is not None:
            (out / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source, out / name)


def write_config(folder: Path, raw_config: Mapping[str, Any]) -> None:
    """Write config.json, or leave the one that is there if it says the same."""
    path = folder / CONFIG
    if not path.is_file() or read_json_object(path) != raw_config:
        path.write_text(json.dumps(raw_config, indent=2) + "\n")
