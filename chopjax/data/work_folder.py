"""OUT.partial of `chopjax prepare`: whose it is, and what belongs in it. What a teacher says of a
store lies in OUT.top_k.partial until it is complete.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from chopjax import interrupts
from chopjax.disk.lock import locked_in
from chopjax.disk.mark import (
    MARK,
    check_own,
    is_taken,
    is_unfinished,
    make_folder,
    mark_new,
    remove_marked,
    some,
)
from chopjax.errors import UserError

VERB = "prepare"
SETTINGS = "prepare.json"  # in OUT: what it was made from and how
RECORDS = "records"  # in OUT.partial: what is in the finished shards

# All names in OUT.partial; those of "replaced", the store that goes, are in its own mark.
_FILES = (
    r"store\.json|prepare\.json|\.chopjax\.json|(tokens|documents|weights)-\d+\.bin|"
    r"top_k\.json|(ids|log_probs)-\d+\.bin"
)
_HIDDEN = r"\.[\w.-]+\.(partial|json\.new)-[0-9a-f]{8}"
_WORK = re.compile(
    rf"lock|prepare\.json|held_out_limit\.json|\.chopjax\.json|replaced|records(/\d+\.json)?|"
    rf"store(/train|/held_out)?(/({_FILES}))?|((records|store|store/train|store/held_out)/)?{_HIDDEN}"
)


def work_folder(final: Path) -> Path:
    return final.with_name(final.name + ".partial")


def top_k_work_folder(final: Path) -> Path:
    return final.with_name(final.name + ".top_k.partial")


@contextlib.contextmanager
def held(work: Path, final: Path) -> Iterator[Path]:
    """A work folder of OUT's, for this process alone. Stays while it holds unfinished work."""
    busy = f"another process is preparing {final}; wait for it"
    try:
        with locked_in(lambda: make_work_folder(work), work / "lock", busy):
            _remove_leftovers(work)

            def remove_unless_useful() -> None:
                if not holds_work(work) and not foreign_in(work):
                    _remove(work)

            with interrupts.at_end(remove_unless_useful):
                try:
                    yield work
                finally:
                    remove_unless_useful()
    except OSError as error:
        raise UserError(f"{error.filename or final}: {error.strerror or error}") from error


def holds_work(work: Path) -> bool:
    """Whether there is a finished shard, with the settings that it was made by."""
    return (work / SETTINGS).is_file() and any((work / RECORDS).glob("*.json"))


def empty(work: Path) -> None:
    """Of all but what makes it ours and this process's."""
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in ("lock", MARK):
            path.unlink()


def make_work_folder(work: Path) -> None:
    """Appears with its mark in it. Raises UserError where the name is somebody else's."""
    if os.path.lexists(work):
        check_work(work)
        return
    try:
        work.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{work}: a part of this path is a file") from None
    new = _hidden(work)
    make_folder(new)
    mark_new(new, VERB)
    try:
        new.rename(work)
    except OSError:
        shutil.rmtree(new, ignore_errors=True)
        if not os.path.lexists(work):
            raise
        check_work(work)  # another process was faster


def _hidden(work: Path) -> Path:
    return work.with_name(f".{work.name}-{secrets.token_hex(4)}")


def _remove(work: Path) -> None:
    """Under a hidden name, so that nobody finds half of it; its mark goes last."""
    hidden = _hidden(work)
    with contextlib.suppress(OSError):  # what stays, the next call removes
        work.rename(hidden)
        empty(hidden)
        shutil.rmtree(hidden)


def _remove_leftovers(work: Path) -> None:
    """Of runs that were killed as they made or removed the folder.

    For who holds the lock: a folder that another process is about to call `work` can be taken for
    one, and that process then finds the name taken.
    """
    for leftover in work.parent.glob(f".{glob.escape(work.name)}-????????"):
        with contextlib.suppress(OSError):
            if is_unfinished(leftover, VERB):
                shutil.rmtree(leftover)


def check_work(work: Path) -> None:
    """Raise UserError where OUT.partial is not unfinished work of ours, and nothing else."""
    if not _is_work(work) and os.path.lexists(work):  # still: its process may have just ended
        raise UserError(
            f"{work} is in the way: unfinished work would be there, and `chopjax prepare` did not "
            "make it. Move it away or give another --output"
        )
    if others := foreign_in(work):
        raise UserError(
            f"{work} holds what `chopjax prepare` did not write: {some(others)}. Move that away, "
            "since the folder goes when the work is done"
        )


def check_store(out: Path) -> None:
    """Raise UserError where a store, or the work on one, is not ours to remove."""
    if is_taken(out):
        check_own(out, VERB)
    if os.path.lexists(work_folder(out)):
        check_work(work_folder(out))


def remove_store(out: Path) -> None:
    """Remove a store and unfinished work on one. Raises UserError as check_store."""
    check_store(out)
    if out.exists():
        remove_marked(out)
    if work_folder(out).exists():
        shutil.rmtree(work_folder(out))


def _is_work(work: Path) -> bool:
    """By its mark; that of an earlier chopjax, which had none, by the settings in it."""
    if work.is_symlink() or not work.is_dir():
        return False
    if is_unfinished(work, VERB):
        return True
    try:
        settings = json.loads((work / SETTINGS).read_text())
        is_ours: bool = {"format", "tokenizer", "sources"} <= settings.keys()
        return is_ours
    except (OSError, ValueError, AttributeError):
        return False


def foreign_in(work: Path) -> list[str]:
    """What is in unfinished work and has no name of ours.

    Another process may be at work in it: what goes meanwhile is no longer looked for.
    """
    paths = (
        Path(folder, name) for folder, folders, files in os.walk(work) for name in folders + files
    )
    named = ((path, path.relative_to(work).as_posix()) for path in paths)
    return sorted(
        name
        for path, name in named
        if not name.startswith("replaced/") and (path.is_symlink() or not _WORK.fullmatch(name))
    )
