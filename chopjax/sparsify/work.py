"""OUT.partial of `chopjax sparsify` and `quantize`: the layers that are changed already. No jax.

    OUT.partial/.chopjax.json         the mark: it is ours
    OUT.partial/settings.json         what is changed, how, on which text
    OUT.partial/layer-N.safetensors   the changed tensors of layer N; its metadata counts zeros
    OUT.partial/states-N.npy          what enters layer N, of every sequence: the latest alone
    OUT.partial/finished.json         the inode of the folder that is about to be named OUT

Files appear whole (new_file), a layer before the states behind it. A run that was killed goes on
from the latest states.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from chopjax import interrupts
from chopjax.checkpoint.safetensors_file import TensorInfo, read_header
from chopjax.disk.atomic import new_file
from chopjax.disk.files import read_json_object
from chopjax.disk.lock import locked, locked_in
from chopjax.disk.mark import MARK, is_unfinished, make_folder, mark_new, some
from chopjax.errors import UserError
from chopjax.progress import say

SETTINGS, FINISHED = "settings.json", "finished.json"
_OURS = re.compile(
    r"(lock|\.chopjax\.json|(settings|finished)\.json|layer-\d+\.safetensors|states-\d+\.npy)"
    r"|\.[\w.-]+\.(partial|json\.new)-[0-9a-f]{8}"
)


def work_folder(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def layer_file(work: Path, layer: int) -> Path:
    return work / f"layer-{layer}.safetensors"


def states_file(work: Path, layer: int) -> Path:
    return work / f"states-{layer}.npy"


def tensors_in(work: Path, num_layers: int) -> dict[str, TensorInfo]:
    """The changed tensors of all layers."""
    tensors: dict[str, TensorInfo] = {}
    for layer in range(num_layers):
        tensors |= read_header(layer_file(work, layer))
    return tensors


def layers_done(work: Path, num_layers: int, with_states: bool) -> int:
    """How many of the first layers need not be changed again."""
    layers = 0
    while layers < num_layers and layer_file(work, layers).is_file():
        layers += 1
    if not with_states:
        return layers
    return max((at for at in range(layers + 1) if states_file(work, at).is_file()), default=0)


@contextlib.contextmanager
def held(out: Path, verb: str, settings: Mapping[str, Any], overwrite: bool) -> Iterator[Path]:
    """OUT's work folder, for this process alone; it stays if the block fails after a layer.

    verb: whose work it is. settings: what the same bytes follow from. Raises UserError where the
    folder is somebody else's, is in use, or holds unfinished work of other settings and there is no
    `overwrite`.
    """
    work = work_folder(out)
    try:
        busy = f"another process is writing {out}; wait for it"
        with locked_in(lambda: _make(work, verb), work / "lock", busy):

            def remove_unless_useful() -> None:
                if not layer_file(work, 0).is_file():
                    shutil.rmtree(work, ignore_errors=True)

            with interrupts.at_end(remove_unless_useful):
                try:
                    _begin(work, settings, overwrite)
                    yield work
                except BaseException:
                    remove_unless_useful()
                    raise
                _remove(work)
    except OSError as error:
        raise UserError(f"{error.filename or work}: {error.strerror or error}") from error


def finishes(work: Path, folder: Path) -> None:
    """Note that this folder, which is complete, is renamed to OUT next. Its inode stays."""
    with new_file(work / FINISHED, overwrite=True) as path:
        path.write_text(json.dumps({"inode": folder.stat().st_ino}))


def remove_finished(out: Path, verb: str) -> None:
    """Remove OUT's work folder where a run was killed after OUT had appeared."""
    work = work_folder(out)
    if not (out.is_dir() and is_unfinished(work, verb) and (work / FINISHED).is_file()):
        return
    if read_json_object(work / FINISHED) != {"inode": out.stat().st_ino}:
        return
    busy = f"another process is writing {out}; wait for it"
    with contextlib.suppress(FileNotFoundError), locked(work / "lock", busy):  # unless it is gone
        say(f"removing {work}, left by a run that was killed when {out} was complete")
        _remove(work)


def _remove(work: Path) -> None:
    """What tells that it may go goes last, and what keeps other processes out."""
    for path in work.iterdir():
        if path.name not in (MARK, FINISHED, "lock"):
            path.unlink()
    shutil.rmtree(work)


def _make(work: Path, verb: str) -> None:
    """Appears with its mark in it."""
    if not os.path.lexists(work):
        work.parent.mkdir(parents=True, exist_ok=True)
        new = work.with_name(f".{work.name}-{secrets.token_hex(4)}")
        make_folder(new)
        mark_new(new, verb)
        new.rename(work)
        return
    if not is_unfinished(work, verb):
        raise UserError(
            f"{work} is in the way: unfinished work would be there, and `chopjax {verb}` did not "
            "make it. Move it away or give another OUT"
        )
    if others := [name for name in sorted(os.listdir(work)) if not _OURS.fullmatch(name)]:
        raise UserError(
            f"{work} holds what `chopjax {verb}` did not write: {some(others)}. Move that away, "
            "since the folder goes when the work is done"
        )


def _begin(work: Path, settings: Mapping[str, Any], overwrite: bool) -> None:
    """Empty the folder unless it holds work of the same settings, and write them into it."""
    before = read_json_object(work / SETTINGS) if (work / SETTINGS).is_file() else None
    same = before == json.loads(json.dumps(settings))
    if before is not None and not same and layer_file(work, 0).is_file() and not overwrite:
        names = [name for name in settings if before.get(name) != settings[name]]
        raise UserError(
            f"{work} holds unfinished work that differs in {', '.join(names)}; delete that folder "
            "or give --overwrite to begin anew, or give another OUT"
        )
    for path in work.iterdir():
        if path.name not in ("lock", MARK) and (not same or path.name.startswith(".")):
            path.unlink()
    if same and layer_file(work, 0).is_file():
        say(f"going on with what {work} holds")
    with new_file(work / SETTINGS, overwrite=True) as path:
        path.write_text(json.dumps(settings))
