"""Text → token store: parallel, the same bytes whatever the number of workers, and resumable.

Work goes on in OUT.partial until everything is there, which is then renamed to OUT. A run that was
killed, or stopped by a mistake in the input, is continued by the same call. Both folders carry our
mark (disk/mark.py); others of these names are left alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from chopjax import interrupts
from chopjax.data import messages
from chopjax.data.chat import ChatEncoder
from chopjax.data.shards import Job, make_shards, read_record, smallest_hashes
from chopjax.data.sources import Source, find_sources, pieces
from chopjax.data.store import (
    FORMAT,
    PARTS,
    STORE,
    Shard,
    TokenStore,
    as_record,
    open_store,
    open_stores,
)
from chopjax.data.text_files import Unit, open_binary
from chopjax.data.tokenizer import Tokenizer, load_tokenizer
from chopjax.data.work_folder import (
    RECORDS,
    SETTINGS,
    VERB,
    empty,
    held,
    holds_work,
    work_folder,
)
from chopjax.disk.atomic import check_free, flush, new_file
from chopjax.disk.files import expanded, read_json_object
from chopjax.disk.mark import remove_marked, write_mark
from chopjax.errors import UserError, listing
from chopjax.progress import progress, say

MOST_WORKERS = 1024

Before = Literal["auto", "bos", "eos", "none"]
After = Literal["none", "eos", "bos"]


def prepare(
    inputs: Sequence[str | os.PathLike[str]],
    tokenizer: Tokenizer | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    field: str | None = None,
    unit: Unit = "file",
    chat: ChatEncoder | None = None,
    before: Before = "auto",
    after: After = "none",
    held_out: str | int | float | None = None,
    workers: int | None = None,
    overwrite: bool = False,
) -> dict[str, TokenStore]:
    """Tokenise documents into a token store.

    inputs: files, folders, patterns, URLs, tfds:… and hf:… (sources.find_sources).
    tokenizer: of the model that will be trained: its folder, hub id or the loaded tokenizer.
    field: which field of a JSON line is the text, by default `text`; with `chat`, `messages`.
    unit: what is a document in plain text: the file, each paragraph or each line.
    chat: documents are conversations, encoded by this (chat.load_chat); loss is on what the
        assistant says. Those in which it says nothing are left out.
    before, after: the token that separates documents. "auto" is bos before each document if the
        tokenizer has one, else eos before; the model learns where documents end by predicting it.
        With `chat` it is none: the template writes what a conversation begins with.
    held_out: a fraction (0.01) or a number of documents (500) to hold out for evaluation, chosen
        by a hash of their text, so that equal texts are never on both sides. OUT then has two
        stores, OUT/train and OUT/held_out.
    workers: processes, by default one a CPU. They do not change the result.
    overwrite: replace a store, or unfinished work, that was made with other settings.

    Returns {"": store}, or {"train": store, "held_out": store}. A finished store of the same
    settings is returned as it is. Raises UserError for mistakes in input or settings.
    """
    if "://" in os.fspath(out):
        raise UserError(f"{out}: prepare writes to a local folder; copy it there afterwards")
    final = Path(os.path.abspath(expanded(out)))
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = load_tokenizer(tokenizer)
    if workers is not None and not 1 <= workers <= MOST_WORKERS:
        raise UserError(f"--workers {workers}: from 1 to {MOST_WORKERS}")
    field = field or ("text" if chat is None else "messages")
    read = None if chat is None else messages.of_field
    sources = find_sources([os.fspath(name) for name in inputs], field, unit, read)
    share = _share(held_out)
    if chat is not None and before == "auto":
        before = "none"
    separators = (_separator(tokenizer, before), _separator(tokenizer, after))
    settings = {
        "format": FORMAT,
        "tokenizer": tokenizer.fingerprint,
        "before": separators[0],
        "after": separators[1],
        "field": field,
        "unit": unit,
        "chat": None if chat is None else chat.fingerprint,
        "held_out": share,
        "sources": _checksums(sources),
    }
    with held(work_folder(final), final) as work:
        if _is_finished(final, settings, overwrite):
            say(f"{final}: prepared already, with the same settings")
            if not _unfinished(work, settings):
                (work / SETTINGS).unlink(missing_ok=True)
            return open_stores(final)
        _begin(work, settings, overwrite)
        workers = workers or min(os.cpu_count() or 1, MOST_WORKERS)
        job = Job(
            tokenizer=tokenizer,
            chat=chat,
            before=separators[0],
            after=separators[1],
            dtype="uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32",
            held_out_limit=None,
            folder=work / "store",
            records=work / RECORDS,
            pieces=pieces(sources),
        )
        if share is not None:
            limit = _limit(share, job, work, workers)
            job = dataclasses.replace(job, held_out_limit=limit)
        _make(job, workers)
        _finish(job, settings)
        _swap(job.folder, final, work)
    return open_stores(final)


def _share(held_out: str | int | float | None) -> int | float | None:
    """A number of documents, or a fraction of them."""
    if held_out is None:
        return None
    try:
        number = float(held_out)
    except ValueError:
        number = -1.0
    if 0 < number < 1:
        return number
    if number >= 1 and number.is_integer():
        return int(number)
    raise UserError(
        f"--held-out {held_out}: a fraction between 0 and 1 or a number of documents is needed"
    )


def _separator(tokenizer: Tokenizer, choice: str) -> tuple[int, ...]:
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id}
    if choice == "none":
        return ()
    if choice == "auto":
        token = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
        if token is None:
            say(f"{tokenizer.name} has neither bos nor eos: nothing will separate documents")
            return ()
        return (token,)
    chosen = ids[choice]
    if chosen is None:
        raise UserError(f"the tokenizer {tokenizer.name} has no {choice} token; choose another")
    return (chosen,)


def _checksums(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """The sources' files, with the sha256 of those that we read byte by byte."""
    files = [file for source in sources for file in source.files]
    readable = [file for file in files if _is_readable(file["name"])]
    total = sum(file["size"] for file in readable)
    with progress("checksums", total, "B") as bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        hashes = pool.map(_sha256, [file["name"] for file in readable])
        for file, sha256 in zip(readable, hashes, strict=True):
            file["sha256"] = sha256
            bar.advance(file["size"])
    return files


def _is_readable(name: str) -> bool:
    if "://" in name:
        return not name.startswith("hf://")  # has its commit in the name
    return Path(name).is_file()  # and not tfds:…


def _sha256(name: str) -> str:
    digest = hashlib.sha256()
    try:
        with open_binary(name) as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror or error})") from error
    return digest.hexdigest()


def _is_finished(final: Path, settings: dict[str, Any], overwrite: bool) -> bool:
    """Whether OUT is what is asked for. Raises UserError where something else is in its place."""
    if not os.path.lexists(final) or (final.is_dir() and not any(final.iterdir())):
        check_free(final, VERB)
        return False
    if not (final / SETTINGS).is_file():
        raise UserError(f"{final} exists and is not a token store; give another --output")
    if overwrite:
        check_free(final, VERB, overwrite)
        return False
    differences = _differences(_read_settings(final), settings)
    if differences:
        raise UserError(
            f"{final} was prepared with other settings; give another --output, or --overwrite:\n"
            + listing(differences)
        )
    return True


def _read_settings(folder: Path) -> dict[str, Any]:
    settings = read_json_object(folder / SETTINGS)
    if not isinstance(settings.get("sources"), list):
        raise UserError(f"{folder / SETTINGS}: not what `chopjax prepare` writes; move it away")
    return settings


def _begin(work: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Make the work folder ready, with what a run of the same settings left in it."""
    differences = _unfinished(work, settings)
    if differences and not overwrite:
        raise UserError(
            f"{work} holds unfinished work with other settings; delete it, or --overwrite:\n"
            + listing(differences)
        )
    if differences or not holds_work(work):
        empty(work)
    if (work / "replaced").is_dir():
        remove_marked(work / "replaced")
    for folder in (work / RECORDS, work / "store", *(work / "store" / p for p in PARTS)):
        folder.mkdir(exist_ok=True)
        for leftover in folder.glob(".*.partial-*"):  # of workers that were killed
            leftover.unlink()
    with new_file(work / SETTINGS, overwrite=True) as path:
        path.write_text(json.dumps(settings))


def _unfinished(work: Path, settings: dict[str, Any]) -> list[str]:
    """What the settings of unfinished work differ in; nothing where there is none."""
    if not holds_work(work):
        return []
    return _differences(_read_settings(work), settings)


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What two settings differ in, a line each."""
    new = json.loads(json.dumps(new))  # as it would come back from disk
    lines = [
        f"{name}: was {old.get(name)}, is {new[name]}"
        for name in new
        if name != "sources" and old.get(name) != new[name]
    ]
    before, now = ({s["name"]: s for s in x["sources"]} for x in (old, new))
    lines += [f"{name}: is missing" for name in before if name not in now]
    lines += [f"{name}: is new" for name in now if name not in before]
    lines += [f"{n}: has changed since" for n in now if n in before and now[n] != before[n]]
    if not lines and list(before) != list(now):
        lines.append("the inputs are in another order")
    return lines


def _limit(share: int | float, job: Job, work: Path, workers: int) -> int:
    """The text hash below which a document is held out."""
    if isinstance(share, float):
        return int(share * 2**64)
    path = work / "held_out_limit.json"
    if path.is_file():
        limit: int = json.loads(path.read_text())
        return limit
    hashes = smallest_hashes(job, share + 1, workers)
    if len(hashes) <= share:
        raise UserError(f"--held-out {share}: there are only {len(hashes)} documents in all")
    limit = int(hashes[share])
    with new_file(path) as temporary:
        temporary.write_text(json.dumps(limit))
    return limit


def _make(job: Job, workers: int) -> None:
    """Make the shards that are not there yet."""
    records = {number: read_record(job, number) for number in range(len(job.pieces))}
    missing = [number for number, record in records.items() if record is None]
    tokens = sum(shard.tokens for record in records.values() if record for shard in record.values())
    if len(missing) < len(job.pieces):
        say(f"{len(job.pieces) - len(missing)} of {len(job.pieces)} shards are there already")
    try:
        make_shards(job, missing, workers, tokens)
    except BaseException:
        work = job.records.parent
        if holds_work(work):
            say(f"what is finished is kept in {work}; the same command continues it")
        raise


def _finish(job: Job, settings: dict[str, Any]) -> None:
    """Write store.json of each part. From here on the folder is what OUT will be."""
    records = [read_record(job, number) for number in range(len(job.pieces))]
    for part in job.parts:
        shards = [record[part] for record in records if record is not None]
        assert len(shards) == len(job.pieces)
        folder = job.folder / part
        store = TokenStore(
            path=str(folder),
            num_tokens=sum(shard.tokens for shard in shards),
            num_documents=sum(shard.documents for shard in shards),
            text_bytes=sum(shard.text_bytes for shard in shards),
            largest_id=max((shard.largest_id for shard in shards), default=-1),
            tokenizer=job.tokenizer.name,
            tokenizer_fingerprint=job.tokenizer.fingerprint,
            vocab_size=job.tokenizer.vocab_size,
            dtype=job.dtype,
            before=job.before[0] if job.before else None,
            after=job.after[0] if job.after else None,
            shards=tuple(
                Shard(s.tokens, s.documents, s.tokens_sha256, s.documents_sha256, s.weights_sha256)
                for s in shards
            ),
            sources=tuple(settings["sources"]),
            weighted_tokens=sum(s.weighted_tokens for s in shards) if job.chat else None,
        )
        if left_out := sum(shard.left_out for shard in shards):
            say(f"conversations in which the assistant says nothing, left out: {left_out:,}")
        if not store.num_documents:
            empty(job.records.parent)
            raise UserError(
                f"no document for {part}; choose another --held-out"
                if part
                else "there is no text in the input"
                if not left_out
                else "the assistant says nothing in the input"
            )
        with new_file(folder / STORE, overwrite=True) as path:
            path.write_text(json.dumps(as_record(store), indent=1) + "\n")
        open_store(folder)  # sizes are as they should be, or this says which are not
    for part in PARTS:
        if part not in job.parts:
            (job.folder / part).rmdir()
    with new_file(job.folder / SETTINGS, overwrite=True) as path:
        path.write_text(json.dumps(settings, indent=1) + "\n")
    write_mark(job.folder, VERB)


def _swap(folder: Path, final: Path, work: Path) -> None:
    """Rename the finished folder to OUT. A kill in between is made good by the next run."""
    if final.exists() and any(final.iterdir()):
        check_free(final, VERB, overwrite=True)  # once more: the work took its time
    with interrupts.whole():
        if final.exists() and any(final.iterdir()):
            final.rename(work / "replaced")
        folder.rename(final)
        flush(final.parent)
        (work / SETTINGS).unlink()
    if (work / "replaced").is_dir():
        remove_marked(work / "replaced")
