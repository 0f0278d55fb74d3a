"""What Orbax makes of paths, of a save that fails, and whether what it saved is there.

Orbax looks for its own files with patterns that begin with the folder's path, so that `[..]`, `*`
and `?` in it match other files or none, and TensorStore takes a backslash for a slash: a
checkpoint is then empty, or somewhere else, without an error.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from chopjax.errors import UserError, listing

Shapes = dict[str, tuple[tuple[int, ...], str]]  # name → shape and type

_MARKER = "orbax.checkpoint"  # Orbax only looks whether it is there
_ODD = set("*?[]{}\\")
_DESCRIPTORS = Path("/proc/self/fd")
_BEGIN_SECONDS = 10.0  # in which a thread begins; one that waits for what failed does so 300 s

# Orbax writes a traceback of what fails in its threads, and raises it again where we wait for it.
logging.getLogger("absl").addFilter(lambda entry: "_SignalingThread.run()" not in str(entry.msg))


@contextlib.contextmanager
def orbax_path(path: Path) -> Iterator[Path]:
    """The path of an Orbax folder under a name that Orbax and TensorStore take as it is.

    That is the path itself or, where its parent's name is odd, the way through a descriptor of the
    parent, which ends with the block. Raises UserError where neither will do.
    """
    path = path.absolute()
    if _is_plain(str(path)):
        yield path
        return
    if not _DESCRIPTORS.is_dir() or not _is_plain(path.name):
        raise UserError(
            f"{path}: Orbax cannot take a path with any of {' '.join(sorted(_ODD))} or with "
            "characters that are not UTF-8; give a folder without them"
        )
    parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield _DESCRIPTORS / str(parent) / path.name
    finally:
        os.close(parent)


def _is_plain(path: str) -> bool:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:  # bytes of a name that is not UTF-8, or not in this locale
        return False
    return not _ODD.intersection(path)


def await_last_writes() -> None:
    """After a save that failed in one of Orbax's threads: until this process's others have ended,
    or still wait to begin.

    TensorStore makes the folders that its files are to lie in: what is removed before that would be
    there again.
    """
    deadline = time.monotonic() + _BEGIN_SECONDS
    for thread in threading.enumerate():
        if type(thread).__module__.startswith("orbax."):
            # `main_task` is there while a thread writes, for as long as the disk takes.
            while thread.is_alive() and (
                getattr(thread, "main_task", None) is not None or time.monotonic() < deadline
            ):
                # Not the thread's own method, which raises what the thread has raised.
                threading.Thread.join(thread, 0.1)


def shapes_by_name(tree: Any) -> Shapes:
    """Every array of a pytree, or of what Orbax says of one."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (tuple(leaf.shape), str(leaf.dtype))
        for path, leaf in leaves
    }


def check_saved(path: Path, expected: Shapes) -> None:
    """Read back from the disk what was saved: every array is there, of its shape and type.

    Only their descriptions are read. path: as `orbax_path` gives it. Raises RuntimeError.
    """
    saved = shapes_by_name(ocp.metadata(path).metadata)
    problems = [
        f"{name} {list(shape)} {dtype}"
        for name, (shape, dtype) in expected.items()
        if saved.get(name) != (shape, dtype)
    ]
    if problems:
        raise RuntimeError(f"what was saved cannot be read back:\n{listing(problems, 4)}")


def seal(path: Path) -> None:
    """Write something into Orbax's empty marker: an emptied file must not look like a whole one."""
    (path / _MARKER).write_text("This folder is a checkpoint of Orbax.\n")
