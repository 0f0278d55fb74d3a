"""Checkpoints on the Hugging Face hub: headers and asked-for tensors only, by range requests.

Small files (configuration, tokenizer) come through huggingface_hub into its own cache. Of every
weight file a mirror (mirror.py) is kept in $HF_HOME/chopjax/models--OWNER--NAME/COMMIT, which
holds the header and the tensors that were asked for. Everything is pinned to one commit. Weights
that huggingface_hub has in its cache already are read from there. No jax.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import shutil
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

from chopjax.checkpoint import hub_requests
from chopjax.checkpoint.assets import is_asset
from chopjax.checkpoint.hub_download import ByteRange, connections, download, download_piece
from chopjax.checkpoint.mirror import Mirror, Range, locked, merge, stored
from chopjax.checkpoint.safetensors_file import (
    PREFIX_BYTES,
    Header,
    TensorInfo,
    header_length,
    open_header,
)
from chopjax.checkpoint.source import (
    CONFIG,
    INDEX,
    SINGLE,
    F,
    Found,
    Opening,
    join_shards,
    no_weights,
    read_config,
    read_weight_map,
)
from chopjax.disk.atomic import new_file
from chopjax.disk.files import read_json_object
from chopjax.errors import UserError
from chopjax.progress import progress, say


@dataclasses.dataclass(frozen=True)
class Repository:
    """One commit of a model on the hub."""

    name: str  # owner/name
    commit: str
    files: tuple[str, ...]
    folder: Path  # where its mirrors are

    def url(self, file: str) -> str:
        return hf_hub_url(self.name, file, revision=self.commit)

    def small_file(self, file: str) -> Path:
        """A file in huggingface_hub's own cache, downloaded if need be."""
        return Path(hf_hub_download(self.name, file, revision=self.commit))


@dataclasses.dataclass(frozen=True)
class RemoteTensor(TensorInfo):
    """A tensor in a mirror: readable once it is there, and not before."""

    mirror: Mirror

    def open(self) -> BinaryIO:
        if self.mirror.missing(self.start, self.start + self.nbytes):
            raise RuntimeError(f"{self.name} was not downloaded; call Checkpoint.fetch first")
        return super().open()


def open_hub(model: str, revision: str | None, opening: Opening[F]) -> F:
    """Open a model of the hub by its id, at a branch, tag or commit.

    Downloads config.json, tokenizer files, the index and the headers; `fetch` of what is returned
    downloads tensors. Raises UserError where the model, the revision, the permission or the
    connection is missing, and where the weights are pickled.
    """
    with hub_requests.users_errors(model):
        repository = _look_up(model, revision)
        weight_map, shards = _weight_files(repository)
        folder = _small_files(repository)
        raw_config = read_config(folder)
        with locked(repository.folder), connections() as (pool, stop):
            of_shards = pool.map(functools.partial(_header, repository, stop=stop), shards)
            headers = dict(zip(shards, of_shards, strict=True))
    if weight_map is None:
        tensors, metadata = headers[SINGLE].tensors, headers[SINGLE].metadata
    else:
        tensors, metadata = join_shards(weight_map, headers, folder / INDEX)

    def fetch(names: Iterable[str]) -> None:
        wanted = [t for t in (tensors[name] for name in names) if isinstance(t, RemoteTensor)]
        with hub_requests.users_errors(model):
            _fetch(repository, wanted)

    found = Found(model, folder, raw_config, tensors, metadata, repository.commit, fetch)
    return opening.assemble(found)


# What this process asked for in vain: not waited for again, nor complained about twice. Keys: the
# records of when it was last seen.
_last_seen: dict[Path, Repository] = {}


def _look_up(model: str, revision: str | None) -> Repository:
    """Commit and files of a revision, from the hub or, without a connection, as last seen."""
    cache = Path(constants.HF_HOME) / "chopjax" / f"models--{model.replace('/', '--')}"
    seen = _record_of(cache, revision or "main")
    if seen in _last_seen:
        return _last_seen[seen]
    last = read_json_object(seen) if seen.exists() else None
    if last is not None and not {"commit", "files"} <= last.keys():
        raise UserError(f"{seen}: not what chopjax keeps there; move it away")
    try:
        now = hub_requests.model_info(model, revision or "main")
    except HfHubHTTPError:
        raise
    except (HTTPError, OfflineModeIsEnabled):
        if last is None:
            raise
        say(f"hub: not reachable; using {model} as it was last seen")
        _last_seen[seen] = _repository(model, cache, last)
        return _last_seen[seen]
    # By its commit, too, which is how a training run remembers what it began with.
    for name in {revision or "main", str(now["commit"])}:
        with new_file(_record_of(cache, name), overwrite=True) as path:
            path.write_text(json.dumps(now))
    return _repository(model, cache, now)


def _record_of(cache: Path, revision: str) -> Path:
    return cache / f"revision-{quote(revision, safe='')}.json"


def _repository(model: str, cache: Path, record: dict[str, Any]) -> Repository:
    return Repository(model, record["commit"], tuple(record["files"]), cache / record["commit"])


def _weight_files(repository: Repository) -> tuple[dict[str, str] | None, list[str]]:
    """The index, None for a single file, and the names of the weight files."""
    files = repository.files
    if SINGLE in files:
        return None, [SINGLE]
    if INDEX not in files:
        named = f"{repository.name} at revision {repository.commit[:12]}"
        raise no_weights(repository.folder, named, files)
    weight_map = read_weight_map(repository.small_file(INDEX))
    shards = sorted(set(weight_map.values()))
    strange = [s for s in shards if s not in files or not re.fullmatch(r"[\w.-]+\.safetensors", s)]
    if strange:
        raise UserError(
            f"{repository.name}: {INDEX} names files that the repository does not have beside it: "
            f"{', '.join(strange[:4])}"
        )
    return weight_map, shards


def _small_files(repository: Repository) -> Path:
    """Download what rides along with the weights; returns the folder where it lies."""
    if CONFIG not in repository.files:
        raise UserError(f"{repository.name}: no {CONFIG}; not a transformers checkpoint")
    for name in filter(is_asset, repository.files):
        repository.small_file(name)
    return repository.small_file(CONFIG).parent


def _header(repository: Repository, file: str, stop: threading.Event) -> Header:
    """The header of a weight file, from its mirror unless huggingface_hub has the whole file."""
    cached = try_to_load_from_cache(repository.name, file, revision=repository.commit)
    if isinstance(cached, str):
        return open_header(Path(cached))
    path = repository.folder / file
    known = stored(path)
    if known is None:
        remote = get_hf_file_metadata(
            repository.url(file), headers=hub_requests.headers(), retry_on_errors=True
        )
        if remote.size is None or remote.etag is None:
            raise UserError(f"{repository.name}: the hub reports no size or etag for {file}")
        known = remote.size, remote.etag
    mirror = Mirror(path, *known)
    mirror.open()
    url = repository.url(file)
    for start, end in mirror.missing(0, min(PREFIX_BYTES, mirror.nbytes)):
        download_piece(ByteRange(url, mirror, start, end), stop)
    with path.open("rb") as prefix:
        length = header_length(prefix.read(PREFIX_BYTES), mirror.nbytes, path)
    for start, end in mirror.missing(PREFIX_BYTES, PREFIX_BYTES + length):
        download_piece(ByteRange(url, mirror, start, end), stop)
    header = open_header(path)
    tensors: dict[str, TensorInfo] = {
        t.name: RemoteTensor(t.name, t.dtype, t.shape, t.file, t.start, t.nbytes, mirror)
        for t in header.tensors.values()
    }
    return Header(tensors, header.metadata)


def _fetch(repository: Repository, tensors: Iterable[RemoteTensor]) -> None:
    """Download the tensors' bytes that are not here, adjacent tensors in one range."""
    wanted: dict[Mirror, list[Range]] = {}
    for tensor in tensors:
        wanted.setdefault(tensor.mirror, []).append((tensor.start, tensor.start + tensor.nbytes))
    with locked(repository.folder):
        pieces: list[ByteRange] = []
        for mirror, ranges in wanted.items():
            mirror.open()  # another process may have added to it
            url = repository.url(mirror.path.name)
            for start, end in merge(ranges):
                pieces += [ByteRange(url, mirror, *gap) for gap in mirror.missing(start, end)]
        total = sum(end - start for ranges in wanted.values() for start, end in merge(ranges))
        left = sum(piece.end - piece.start for piece in pieces)
        if not left:
            return
        free = shutil.disk_usage(repository.folder).free
        if left > free:
            raise UserError(
                f"{left:,} bytes are to be downloaded to {repository.folder} and {free:,} are free "
                "on that disk; HF_HOME names another place"
            )
        with progress(f"download {repository.name}", total, "B", total - left) as bar:
            download(pieces, bar.advance)
