"""The folder that `chopjax run`, `sweep` and `classify` work in: whose it is, and whether what
they will write fits on its disk."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from chopjax.data.lists import text_names
from chopjax.data.sources import find_sources
from chopjax.disk.free import free_bytes
from chopjax.disk.mark import begin_mark, check_mark, marked_by
from chopjax.errors import UserError
from chopjax.launch.workdir import owned


@contextlib.contextmanager
def opened(
    workdir: Path, verb: str, check: Callable[[Path], None], flag: str = "--workdir"
) -> Iterator[None]:
    """Hold the folder, marked as the verb's. Raises UserError where it is another verb's.

    check: raises UserError where others' files stand in the way. flag: which one gave the folder.
    """

    def check_all(workdir: Path) -> None:
        check_mark(workdir)
        if marked_by(workdir) not in (None, verb):
            raise UserError(
                f"{workdir} is a folder of `chopjax {marked_by(workdir)}`; give another {flag}"
            )
        check(workdir)

    with owned(workdir, check_all, flag):
        if marked_by(workdir) is None:
            begin_mark(workdir, verb)
        yield


def check_space(workdir: Path, texts: list[str], field: str, models: int) -> None:
    """Raise UserError where it cannot fit, as far as can be told before.

    texts: lists of files that are tokenized: four bytes of text are about a token, which takes two
    to four. models: bytes of the checkpoints that there will be at a time. Results are not counted.
    What is in the folder already is taken off.
    """
    files = [
        file for text in texts for s in find_sources(text_names(text), field) for file in s.files
    ]
    total = models + sum(file.get("size") or 0 for file in files) // 2
    written = (path for path in workdir.rglob("*") if path.is_file() and not path.is_symlink())
    there = sum(path.stat().st_size for path in written)
    free = free_bytes(workdir)
    if free is not None and total - there > free:
        raise UserError(
            f"{workdir}: about {total:,} bytes will be written there in all (checkpoints of "
            f"training, models, tokens; {there:,} are there already), and {free:,} are free on "
            "that disk; make room, give another --workdir, or lower heal.checkpoints.keep_last"
        )
