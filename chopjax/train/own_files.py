"""Which files of a training run's folder are the run's; the rest is somebody else's.

    WORKDIR/.chopjax.json    the mark (disk/mark.py), of `chopjax train`; it lists
                             huggingface/ and chopjax_folder.json
    WORKDIR/checkpoints/     each checkpoint lists its files itself (sha256.json)

A run that an earlier chopjax began has no mark. Its checkpoints are known by what is in them, so
that it goes on.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from chopjax.checkpoint.describe import CHECKPOINTS, HUGGINGFACE
from chopjax.checkpoint.source import FOLDER_MARK
from chopjax.disk.atomic import flush_tree
from chopjax.disk.mark import (
    MARK,
    check_mark,
    foreign,
    is_taken,
    is_unfinished,
    make_folder,
    mark_new,
    marked_by,
    remove_marked,
    some,
    write_mark,
)
from chopjax.errors import UserError
from chopjax.launch.workdir import LOCK
from chopjax.train.checkpoints import extras, is_checkpoint, is_saving
from chopjax.train.metrics import TENSORBOARD
from chopjax.train.metrics_file import METRICS
from chopjax.train.wandb_run import FILES as WANDB_FILES

VERB = "train"
ASSETS = (HUGGINGFACE, FOLDER_MARK)
PLACES = (*ASSETS, CHECKPOINTS, METRICS, TENSORBOARD)
_EVENTS = re.compile(r"events\.out\.tfevents\..*")
_PROFILE = re.compile(r"plugins(/profile(/.*)?)?")
_HIDDEN = re.compile(r"\.(metrics\.jsonl|assets)\.partial-[0-9a-f]{8}")


def check_workdir(workdir: Path) -> None:
    """Raise UserError where a run can neither go on nor begin, since others' files stand there."""
    check_mark(workdir)
    made_by = marked_by(workdir)
    if made_by not in (None, VERB):
        raise UserError(f"{workdir} is a folder of `chopjax {made_by}`; give another --workdir")
    folder = workdir / CHECKPOINTS
    goes_on = folder.is_dir() and any(p.name.isdigit() and is_checkpoint(p) for p in _in(folder))
    if made_by == VERB or goes_on:
        return
    taken = [name for name in PLACES if is_taken(workdir / name)]
    if taken:
        raise UserError(
            f"{workdir} holds {some(taken)}, and no training run of chopjax's is known to have "
            "put it there; move it away or give another --workdir"
        )


@contextlib.contextmanager
def new_assets(workdir: Path) -> Iterator[Path]:
    """A folder to write ASSETS to; they take their places in the run's folder when the block ends.

    Those of an earlier attempt are replaced if they are as it left them.
    """
    for leftover in workdir.glob(".assets.partial-????????"):
        if is_unfinished(leftover, VERB):
            shutil.rmtree(leftover)
    if others := _foreign_assets(workdir):
        raise UserError(f"{workdir} holds {some(others)}, which is not the run's; move it away")
    temporary = workdir / f".assets.partial-{secrets.token_hex(4)}"
    make_folder(temporary)
    try:
        mark_new(temporary, VERB)
        yield temporary
        flush_tree(temporary)
        remove_marked(workdir)
        write_mark(temporary, VERB, into=workdir)
        for name in ASSETS:
            (temporary / name).rename(workdir / name)
    finally:
        shutil.rmtree(temporary)


def _foreign_assets(workdir: Path) -> list[str]:
    if marked_by(workdir) != VERB:
        return [name for name in ASSETS if is_taken(workdir / name)]
    return [n for n in foreign(workdir) if n.partition("/")[0] in ASSETS]


def foreign_files(workdir: Path, wandb: bool = True, profile: bool = True) -> list[str]:
    """What is in a run's folder and not the run's; names, sorted.

    wandb, profile: whether the run may have had them written, each into a folder whose files
    nobody can tell from others'.
    """
    if marked_by(workdir) != VERB:
        return [MARK + " of `chopjax train` is missing"]
    by_wandb = WANDB_FILES if wandb else ()
    others = foreign(workdir, (CHECKPOINTS, METRICS, TENSORBOARD, LOCK, *by_wandb))
    names = [name for name in others if not _HIDDEN.match(name)]
    names += [n for n in (METRICS, LOCK) if (workdir / n).is_dir() or (workdir / n).is_symlink()]
    folder = workdir / TENSORBOARD
    for path in folder.rglob("*") if folder.is_dir() else ():
        name = path.relative_to(folder).as_posix()
        ours = _EVENTS.fullmatch(name) or (profile and _PROFILE.fullmatch(name))
        if path.is_symlink() or not ours:
            names.append(path.relative_to(workdir).as_posix())
    for path in _in(workdir / CHECKPOINTS):
        name = path.relative_to(workdir).as_posix()
        if is_saving(path):
            continue
        if is_checkpoint(path):
            names += [f"{name}/{extra}" for extra in extras(path)]
        else:
            names.append(name)
    return sorted(names)


def check_run(workdir: Path) -> None:
    """Raise UserError where a training run's folder holds what is not the run's."""
    if not is_taken(workdir):
        return
    if marked_by(workdir) != VERB:
        raise UserError(
            f"{workdir} has no {MARK} of `chopjax train`: an earlier chopjax made it, or somebody "
            "else. It is neither replaced nor set aside; move it away"
        )
    if others := foreign_files(workdir):
        raise UserError(
            f"{workdir} is in the way, and not all in it is known to be a training run's: "
            f"{some(others)}; move that away"
        )


def _in(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
