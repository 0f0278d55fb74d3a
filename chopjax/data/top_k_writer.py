"""Writing what a teacher says of a store (top_k.py): shard by shard, resumable, whole or not there.

Work goes on in OUT.top_k.partial, beside the store, and ends by a rename into it. A shard is done
when its record is on disk. Which teacher is asked, and how, is the caller's.

Axes: N rows, T tokens of a row, K likeliest tokens.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from chopjax import interrupts
from chopjax.data.store import TokenStore
from chopjax.data.top_k import (
    FOLDER,
    LOG_PROBS,
    RECORD,
    Shard,
    TopK,
    Windows,
    as_record,
    find_top_k,
    ids_file,
    log_probs_file,
)
from chopjax.data.work_folder import (
    RECORDS,
    SETTINGS,
    VERB,
    empty,
    held,
    holds_work,
    top_k_work_folder,
)
from chopjax.disk.atomic import check_free, flush, new_file
from chopjax.disk.files import read_json_object
from chopjax.disk.free import free_bytes
from chopjax.disk.mark import add_tree_to_mark, marked_by, remove_marked, write_mark
from chopjax.errors import UserError, listing
from chopjax.progress import progress, say

# Of a shard. Few, so that a store is few files; many, so that a kill loses little.
MIN_SHARD_BYTES = 1 << 22
MAX_SHARDS = 1024

# Rows → the ids [N, T, K] and log-probabilities [N, T, K] of some of them at a time, in order.
Answers = Callable[[range], Iterator[tuple[np.ndarray, np.ndarray]]]


def windows_of(
    store: TokenStore, rows: int, top_k: int, sequence_length: int, mask_documents: bool, vocab: int
) -> Windows:
    """What to ask of so many rows of a store. vocab: the teacher's."""
    windows = Windows(
        store=store.fingerprint,
        top_k=top_k,
        sequence_length=sequence_length,
        mask_documents=mask_documents,
        rows=rows,
        rows_per_shard=1,
        dtype="uint16" if vocab <= 1 << 16 else "uint32",
    )
    fit = max(1, MIN_SHARD_BYTES // windows.bytes_per_row, -(-rows // MAX_SHARDS))
    return dataclasses.replace(windows, rows_per_shard=min(fit, rows))


def write_top_k(
    out: Path,
    store: TokenStore,
    windows: Windows,
    teacher: dict[str, Any],
    begin: Callable[[], Answers],
    overwrite: bool = False,
) -> TopK:
    """What a teacher says of a store, written beside its tokens; what is there already is kept.

    out: the folder of `prepare`, which is the store's or holds it. teacher: how it is recorded; of
    equal `weights` and `dtype` answers are the same. begin: called where there is something to ask.
    Raises UserError where the answers of another teacher, or to other windows, are in the way.
    """
    work, final = top_k_work_folder(out), Path(store.path) / FOLDER
    question = {"windows": dataclasses.asdict(windows), **_told_by(teacher)}
    with held(work, out):
        old = None if overwrite else find_top_k(store)
        if old is not None:
            cut = dataclasses.replace(old.windows, rows_per_shard=windows.rows_per_shard)
            before = {"windows": dataclasses.asdict(cut), **_told_by(old.teacher)}
            if differences := _differences(before, question):
                raise UserError(
                    f"{final}: a teacher was asked already, otherwise; --overwrite asks again:\n"
                    + listing(differences)
                )
            say(f"{final}: the teacher was asked already, with the same settings")
            return old
        check_free(final, VERB, overwrite)
        folder = _begin(work, question, overwrite)
        records = _Records(work / RECORDS, folder, windows)
        missing = [n for n in range(len(windows.shards)) if records.read(n) is None]
        _say_size(out, windows, missing)
        if missing:
            try:
                _ask(windows, folder, records, missing, begin())
            except BaseException:
                if holds_work(work):
                    say(f"what is finished is kept in {work}; the same command continues it")
                raise
        shards = [records.read(number) for number in range(len(windows.shards))]
        top_k = TopK(str(final), windows, teacher, tuple(s for s in shards if s is not None))
        with new_file(folder / RECORD, overwrite=True) as path:
            path.write_text(json.dumps(as_record(top_k), indent=1) + "\n")
        write_mark(folder, VERB)
        _swap(folder, final, out, work)
    found = find_top_k(store)
    assert found is not None
    return found


def _told_by(teacher: dict[str, Any]) -> dict[str, Any]:
    return {name: teacher.get(name) for name in ("weights", "dtype")}


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    def flat(said: dict[str, Any]) -> dict[str, Any]:
        windows = {name: value for name, value in said["windows"].items() if name != "rows"}
        return {**windows, "teacher": said["weights"], "teacher's dtype": said["dtype"]}

    before, now = flat(old), flat(new)
    return [f"{k}: was {before.get(k)}, is {now[k]}" for k in now if before.get(k) != now[k]]


def _begin(work: Path, question: dict[str, Any], overwrite: bool) -> Path:
    """The folder for shards, with those of unfinished work that asked the same."""
    if holds_work(work):
        old = read_json_object(work / SETTINGS)
        try:
            differences = _differences(old, question)
        except (KeyError, TypeError):
            raise UserError(f"{work / SETTINGS}: not what prepare writes; move it away") from None
        if differences and not overwrite:
            raise UserError(
                f"{work} holds unfinished work with other settings; delete it, or --overwrite:\n"
                + listing(differences)
            )
        if differences:
            empty(work)
    else:
        empty(work)
    if (work / "replaced").is_dir():
        remove_marked(work / "replaced")
    for folder in (work / RECORDS, work / "store"):
        folder.mkdir(exist_ok=True)
        for leftover in folder.glob(".*.partial-*"):  # of a process that was killed
            leftover.unlink()
    with new_file(work / SETTINGS, overwrite=True) as path:
        path.write_text(json.dumps(question))
    return work / "store"


@dataclasses.dataclass(frozen=True)
class _Records:
    """Which shards are finished."""

    folder: Path
    shards: Path
    windows: Windows

    def path(self, number: int) -> Path:
        return self.folder / f"{number:05}.json"

    def read(self, number: int) -> Shard | None:
        try:
            shard = Shard(**json.loads(self.path(number).read_bytes()))
            names = ids_file(number), log_probs_file(number)
            size = sum((self.shards / name).stat().st_size for name in names)
        except FileNotFoundError:
            return None
        return shard if size == shard.rows * self.windows.bytes_per_row else None


def _say_size(out: Path, windows: Windows, missing: list[int]) -> None:
    """And refuse what the disk cannot hold."""
    rows = sum(len(windows.shards[number]) for number in missing)
    size, left = windows.rows * windows.bytes_per_row, rows * windows.bytes_per_row
    finished = f", {size - left:,} of them there already" if left < size else ""
    say(
        f"{windows.rows:,} windows of {windows.sequence_length:,} tokens, the {windows.top_k} "
        f"likeliest next tokens of each token: {size:,} bytes{finished}"
    )
    free = free_bytes(out)
    if free is not None and left > free:
        raise UserError(
            f"{out}: {left:,} bytes will be written there, and {free:,} are free on that disk; "
            "make room, or ask for fewer tokens with --top-k"
        )


def _ask(
    windows: Windows, folder: Path, records: _Records, missing: list[int], answers: Answers
) -> None:
    shards, length = windows.shards, windows.sequence_length
    done = windows.rows - sum(len(shards[number]) for number in missing)
    with progress("ask the teacher", windows.rows * length, "tokens", done * length) as bar:
        for number in missing:
            shard = _shard(windows, folder, number, answers(shards[number]), bar.advance)
            with new_file(records.path(number), overwrite=True) as path:
                path.write_text(json.dumps(dataclasses.asdict(shard)))


def _shard(
    windows: Windows,
    folder: Path,
    number: int,
    answers: Iterator[tuple[np.ndarray, np.ndarray]],
    advance: Callable[[int], object],
) -> Shard:
    """Write one shard's files."""
    ids_dtype = np.dtype(windows.dtype).newbyteorder("<")
    ids_hash, log_probs_hash = hashlib.sha256(), hashlib.sha256()
    rows, largest = 0, -1
    with contextlib.ExitStack() as stack:

        def opened(name: str) -> Any:
            path = stack.enter_context(new_file(folder / name, overwrite=True))
            return stack.enter_context(path.open("wb"))

        ids_out, log_probs_out = opened(ids_file(number)), opened(log_probs_file(number))
        for ids_NTK, log_probs_NTK in answers:
            if not np.isfinite(log_probs_NTK).all():
                raise UserError("the teacher's logits are not all numbers (NaN or infinity)")
            ids = ids_NTK.astype(ids_dtype).tobytes()
            log_probs = log_probs_NTK.astype(LOG_PROBS).tobytes()
            ids_out.write(ids)
            log_probs_out.write(log_probs)
            ids_hash.update(ids)
            log_probs_hash.update(log_probs)
            rows, largest = rows + len(ids_NTK), max(largest, int(ids_NTK.max()))
            advance(len(ids_NTK) * windows.sequence_length)
    assert rows == len(windows.shards[number])
    return Shard(rows, ids_hash.hexdigest(), log_probs_hash.hexdigest(), largest)


def _swap(folder: Path, final: Path, out: Path, work: Path) -> None:
    """Rename the finished folder into the store. A kill in between is made good by the next run."""
    check_free(final, VERB, overwrite=True)  # once more: the work took its time
    if marked_by(out) is not None:
        add_tree_to_mark(out, os.path.relpath(final, out), folder)
    with interrupts.whole():
        if final.exists():
            final.rename(work / "replaced")
        folder.rename(final)
        flush(final.parent)
        (work / SETTINGS).unlink()
    if (work / "replaced").is_dir():
        remove_marked(work / "replaced")
