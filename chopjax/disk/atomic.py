"""Folders and files that appear under their final name whole, or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path

from chopjax import interrupts
from chopjax.disk.files import expanded
from chopjax.disk.mark import (
    check_own,
    is_unfinished,
    make_folder,
    mark_new,
    remove_marked,
    write_mark,
)
from chopjax.errors import UserError
from chopjax.progress import say

# A full disk, a forbidden folder: the user's to mend.
USERS_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.ENAMETOOLONG,
}


@contextlib.contextmanager
def new_folder(
    final: Path, verb: str, overwrite: bool = False, protect: Iterable[Path] = ()
) -> Iterator[Path]:
    """Yield a new folder beside `final`; flush it to disk and rename it when the block ends.

    Any exception, KeyboardInterrupt included, removes it. What a killed run left is removed by
    the next one. The folder gets the mark of `verb` (mark.py). `overwrite` replaces an existing
    folder, but only one that the same verb made and that holds nothing else, and never one in
    which the home folder or a path of `protect` (the input) lies.
    """
    final = _absolute(final)
    check_free(final, verb, overwrite, protect)
    with _users_errors(final), _parents(final.parent):
        _remove_leftovers(final, verb)
        with _locked_folder(final, verb) as temporary:
            yield temporary
            flush_tree(temporary)
            write_mark(temporary, verb)
            flush(temporary)
            check_free(final, verb, overwrite, protect)
            _swap(temporary, final)


@contextlib.contextmanager
def new_file(final: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a path beside `final` to write; flush it and rename it when the block ends."""
    final = _absolute(final)
    if final.is_dir():
        raise UserError(f"{final} is a folder; a file name is needed")
    if final.exists() and not overwrite:
        raise UserError(f"{final} exists; give another name or --overwrite")
    temporary = final.with_name(f".{final.name}.partial-{secrets.token_hex(4)}")
    remove = interrupts.at_end(lambda: temporary.unlink(missing_ok=True))
    with _users_errors(final), _parents(final.parent), remove:
        try:
            yield temporary
            flush(temporary)
            temporary.replace(final)
            flush(final.parent)
        finally:
            temporary.unlink(missing_ok=True)


def check_free(
    final: Path, verb: str, overwrite: bool = False, protect: Iterable[Path] = ()
) -> None:
    """Raise UserError unless new_folder could take this name. For asking before long work."""
    final = _absolute(final)
    if not os.path.lexists(final):
        return
    if not final.is_dir() or final.is_symlink():
        raise UserError(f"{final} exists and is not a folder; give another name")
    if Path.cwd().is_relative_to(final):
        raise UserError(f"{final} is the current folder or holds it; give another name")
    if not any(final.iterdir()):
        return
    if not overwrite:
        raise UserError(f"{final} exists and is not empty; give another name or --overwrite")
    resolved = final.resolve()
    for path in (*protect, Path.home()):
        if path.resolve().is_relative_to(resolved):
            raise UserError(f"--overwrite would delete {path}, which lies in {final}")
    check_own(final, verb)


def set_aside(path: Path) -> Path:
    """Rename a folder or file to a name that says when; returns that name."""
    when = datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    aside, number = path.with_name(f"{path.name}.{when}"), 1
    while os.path.lexists(aside):
        number += 1
        aside = path.with_name(f"{path.name}.{when}-{number}")
    path.rename(aside)
    flush(path.parent)
    say(f"{path} is now {aside.name}; delete it if you do not want it")
    return aside


def check_room(folder: Path, nbytes: int) -> None:
    """Raise UserError where so many bytes cannot fit on the disk of an existing folder."""
    free = shutil.disk_usage(folder).free
    if nbytes > free:
        raise UserError(
            f"{folder.parent}: {nbytes:,} bytes are to be written and {free:,} are free on that "
            "disk"
        )


def _absolute(final: Path) -> Path:
    if ":/" in str(final):  # Path("gs://bucket") is gs:/bucket
        raise UserError(f"{final} is a URL; give a folder on this machine and copy it there after")
    return Path(os.path.abspath(expanded(final)))


@contextlib.contextmanager
def _users_errors(final: Path) -> Iterator[None]:
    """Full disks and forbidden folders are the user's to mend."""
    try:
        yield
    except OSError as error:
        if error.errno not in USERS_ERRORS:
            raise
        place = error.filename or final
        raise UserError(f"{place}: {error.strerror}; nothing was written to {final}") from error


@contextlib.contextmanager
def _parents(folder: Path) -> Iterator[None]:
    """Create missing parents; take them away again if the block fails."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]

    def remove_missing() -> None:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UserError(f"{folder} is a file; nothing can be written below it") from None
    with interrupts.at_end(remove_missing):
        try:
            yield
        except BaseException:
            remove_missing()
            raise


@contextlib.contextmanager
def _locked_folder(final: Path, verb: str) -> Iterator[Path]:
    """A hidden sibling of `final`, marked, and locked as long as this process lives."""
    temporary = final.with_name(f".{final.name}.partial-{secrets.token_hex(4)}")
    try:
        make_folder(temporary)
    except OSError as error:
        raise UserError(f"{final.parent}: cannot write there: {error.strerror}") from None
    handle = os.open(temporary, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with interrupts.at_end(lambda: _remove_in_use(temporary)):
            mark_new(temporary, verb)
            yield temporary
    finally:
        os.close(handle)
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_in_use(folder: Path) -> None:
    """Remove a folder into which other threads still write: under a name that they do not know, so
    that nothing new gets in."""
    unknown = folder.with_name(f"{folder.name[:-8]}{secrets.token_hex(4)}")
    folder.rename(unknown)
    for _ in range(2):  # a file that was being created at that moment
        shutil.rmtree(unknown, ignore_errors=True)


def _remove_leftovers(final: Path, verb: str) -> None:
    """Remove what a killed run left: its mark tells it from a folder of somebody else's, and the
    lock from one that another process writes."""
    for leftover in final.parent.glob(f".{glob.escape(final.name)}.partial-????????"):
        if not is_unfinished(leftover, verb):
            continue
        handle = os.open(leftover, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        else:
            say(f"removing {leftover}, left by a run that was killed")
            shutil.rmtree(leftover, ignore_errors=True)
        finally:
            os.close(handle)


def _swap(temporary: Path, final: Path) -> None:
    """Rename to the final name; what stood there is deleted after, or put back on failure. Of that
    only what its mark lists: a file that somebody put there meanwhile stays."""
    old = None
    with interrupts.whole():
        if final.exists() and any(final.iterdir()):
            old = final.with_name(f".{final.name}.old-{secrets.token_hex(4)}")
            final.rename(old)
        try:
            temporary.rename(final)
        except OSError as error:
            if old:
                old.rename(final)
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise UserError(f"{final} was written by somebody else meanwhile") from None
            raise
        flush(final.parent)
    if old:
        with interrupts.at_end(lambda: remove_marked(old)):
            remove_marked(old)
        if old.exists():
            say(f"{old} keeps what was written to {final} meanwhile")


def flush_tree(folder: Path) -> None:
    """Everything below `folder` to disk, so that the rename after it cannot overtake it."""
    for parent, _, names in os.walk(folder):
        for name in names:
            interrupts.check()
            flush(Path(parent, name))
        flush(Path(parent))


def flush(path: Path) -> None:
    """A file, or the names in a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
