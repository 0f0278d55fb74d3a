"""Documents out of Hugging Face datasets, streamed: from the hub or from a local folder."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from chopjax.data.reader import BadExample, Reader
from chopjax.disk.files import expanded
from chopjax.errors import UserError, first_line

NOMINAL_BYTES = 1 << 26  # what a file of the hub counts for when work is divided


@dataclasses.dataclass(frozen=True)
class HuggingFaceSplit:
    """One split of a dataset, at one commit if it comes from the hub."""

    name: str  # hf:allenai/c4/en:train
    dataset: str  # path or hub id
    config: str | None
    split: str
    revision: str | None  # the commit
    field: str
    data_files: tuple[str, ...]  # paths, or hf:// URLs with the commit in them
    shards: int
    read: Reader | None = None  # None: a document is the field's text

    @property
    def size(self) -> int | None:
        """None: files of the hub, not looked at."""
        sizes = [file.get("size") for file in self.files]
        return None if None in sizes else sum(s for s in sizes if s is not None)

    @property
    def files(self) -> list[dict[str, Any]]:
        local = [Path(name) for name in self.data_files]
        return [
            {"name": str(path), "size": path.stat().st_size}
            if path.is_file()
            else {"name": f"{name} ({self.config or 'default'}, {self.split})"}
            for path, name in zip(local, self.data_files, strict=True)
        ]

    def cuts(self, target: int) -> list[tuple[int, int, int]]:
        """One part a shard; those are for the dataset library to find."""
        each = NOMINAL_BYTES if self.size is None else self.size // max(self.shards, 1)
        return [(shard, shard + 1, each) for shard in range(self.shards)]

    def texts(self, start: int, stop: int, advance: Callable[[int], None]) -> Iterator[str]:
        """The texts of shards start..stop-1."""
        stream = _stream(self.dataset, self.config, self.split, self.revision)
        for shard in range(start, stop):
            examples = iter(stream.shard(self.shards, shard))
            while True:
                try:
                    example = next(examples, None)
                except Exception as error:  # of pyarrow, of the hub, of a file's format
                    raise UserError(f"{self.name}: shard {shard}: {first_line(error)}") from error
                if example is None:
                    break
                text = self._text(example)
                yield text
                advance(len(text))

    def _text(self, example: dict[str, Any]) -> str:
        if self.read is not None:
            try:
                return self.read(example, self.field)
            except BadExample as error:
                raise UserError(f"{self.name}: {error}") from None
        text = example.get(self.field)
        if isinstance(text, str):
            return text
        fields = ", ".join(sorted(k for k, v in example.items() if isinstance(v, str)))
        raise UserError(f"{self.name}: no text in field {self.field!r}; --field takes: {fields}")


def open_split(spec: str, field: str, read: Reader | None = None) -> HuggingFaceSplit:
    """`OWNER/NAME[/CONFIG][@REVISION][:SPLIT]` of the hub, or `FOLDER[:SPLIT]`; split: train."""
    place, colon, split = spec.rpartition(":")
    if not colon:
        place, split = spec, "train"
    elif expanded(spec).is_dir():
        if expanded(place).is_dir():
            raise UserError(
                f"hf:{spec}: {spec} and {place} are folders both; write hf:{spec}:train for the "
                f"first or hf:{place}/:{split} for the second"
            )
        place, split = spec, "train"
    folder = expanded(place)
    if folder.is_dir():
        dataset, config, revision = str(folder.resolve()), None, None
    elif place.startswith(("/", ".", "~")):
        raise UserError(f"hf:{spec}: no such folder: {place}")
    else:
        named, _, wanted = place.partition("@")
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+){0,2}", named):
            raise UserError(f"hf:{spec}: hf:OWNER/NAME[/CONFIG][@REVISION][:SPLIT] is needed")
        parts = named.split("/")
        dataset, config = "/".join(parts[:2]), parts[2] if len(parts) == 3 else None
        revision = _commit(dataset, wanted or None)
    stream = _stream(dataset, config, split, revision)
    return HuggingFaceSplit(
        name=f"hf:{place}:{split}",
        dataset=dataset,
        config=config,
        split=split,
        revision=revision,
        field=field,
        data_files=_data_files(dataset, config, split, revision),
        shards=stream.num_shards,
        read=read,
    )


def _commit(dataset: str, revision: str | None) -> str:
    import huggingface_hub

    from chopjax.checkpoint import hub_requests  # noqa: F401 - the hub's remarks go above our bars

    try:
        commit = huggingface_hub.HfApi().dataset_info(dataset, revision=revision).sha
    except Exception as error:
        raise UserError(f"hf:{dataset}: {first_line(error)}") from error
    assert commit
    return commit


@functools.lru_cache(maxsize=4)
def _stream(dataset: str, config: str | None, split: str, revision: str | None) -> Any:
    import datasets

    from chopjax.checkpoint import hub_requests  # noqa: F401 - as in _commit

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(
            dataset, config, split=split, revision=revision, streaming=True
        )
    except Exception as error:
        raise UserError(f"hf:{dataset}: {first_line(error)}") from error


def _data_files(
    dataset: str, config: str | None, split: str, revision: str | None
) -> tuple[str, ...]:
    import datasets

    builder = datasets.load_dataset_builder(dataset, config, revision=revision)
    return tuple(os.fspath(file) for file in (builder.config.data_files or {}).get(split, ()))
