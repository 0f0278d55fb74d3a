"""Where the results of a model go: DIR/MODEL, as lm-evaluation-harness lays them out.

A hub id is spelled as the harness spells it (owner__name). Of a folder's path the harness takes
all; here it is the folder's own name, with those above it only where another model of that name
has its results in DIR already. A file in the folder says whose it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from lm_eval.utils import sanitize_model_name

from chopjax.disk.files import expanded
from chopjax.errors import UserError

OWNER = "model.txt"


def model_folder(output: Path, model: str) -> Path:
    """The model's folder under `output`, made if it is not there; the same one at every call.

    model: as the user said it. Raises UserError where no folder can be made.
    """
    for name in _names(model):
        folder = output / name
        try:
            if _claim(folder, _whose(model)):
                return folder
        except OSError as error:
            raise UserError(f"{folder}: {error.strerror}") from error
    raise UserError(f"--output {output}: a place for the results of {model} is taken; give another")


def _whose(model: str) -> str:
    path = expanded(model)
    return str(path.resolve()) if path.exists() else model


def _names(model: str) -> Iterator[str]:
    """Names for the folder, shortest first; the harness's own is the last."""
    path = expanded(model)
    if path.exists():
        parts = Path(os.path.abspath(path)).parts[1:]
        for count in range(1, len(parts) + 1):
            yield sanitize_model_name("__".join(parts[-count:]))
    yield sanitize_model_name(_whose(model))


def _claim(folder: Path, whose: str) -> bool:
    """Whether the folder is this model's, or is now. What is in it already may be another's."""
    if folder.exists() and not folder.is_dir():
        return False
    mark = folder / OWNER
    if mark.is_file():
        return mark.read_text(encoding="utf-8", errors="replace").strip() == whose
    if folder.is_dir() and any(folder.iterdir()):
        return False
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with mark.open("x", encoding="utf-8") as file:
            file.write(f"{whose}\n")
    except FileExistsError:  # another run was faster
        return mark.read_text(encoding="utf-8", errors="replace").strip() == whose
    return True
