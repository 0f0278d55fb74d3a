"""Documents out of TensorFlow Datasets, by random access and without TensorFlow.

The dataset must lie prepared in array_record (or Parquet) form in $TFDS_DATA_DIR, by default
~/tensorflow_datasets; nothing is downloaded.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

from chopjax.data.reader import BadExample, Reader
from chopjax.errors import UserError, first_line

_READ_AT_ONCE = 256


@dataclasses.dataclass(frozen=True)
class TfdsSplit:
    """One split of one version of a dataset."""

    name: str  # tfds:c4/en:3.1.0:train
    dataset: str  # c4/en:3.1.0
    split: str  # as TFDS spells it, slices included: train[:1%]
    field: str
    count: int  # examples
    size: int  # bytes on disk, about
    read: Reader | None = None  # None: a document is the field's text

    @property
    def files(self) -> list[dict[str, Any]]:
        return [{"name": self.name, "size": self.size, "examples": self.count}]

    def cuts(self, target: int) -> list[tuple[int, int, int]]:
        parts = max(1, min(self.count, -(-self.size // target)))
        edges = [self.count * part // parts for part in range(parts + 1)]
        return [
            (a, b, self.size * (b - a) // max(self.count, 1)) for a, b in itertools.pairwise(edges)
        ]

    def texts(self, start: int, stop: int, advance: Callable[[int], None]) -> Iterator[str]:
        """The texts of examples start..stop-1."""
        source = _data_source(self.dataset, self.split)
        for first in range(start, stop, _READ_AT_ONCE):
            last = min(first + _READ_AT_ONCE, stop)
            for index, example in enumerate(source.__getitems__(range(first, last)), first):
                yield self._text(example, index)
            advance(self.size * (last - first) // self.count)

    def _text(self, example: dict[str, Any], index: int) -> str:
        if self.read is not None:
            try:
                return self.read(example, self.field)
            except BadExample as error:
                raise UserError(f"{self.name}: example {index}: {error}") from None
        text = example.get(self.field)
        if isinstance(text, bytes):
            try:
                return text.decode()
            except UnicodeDecodeError as error:
                raise UserError(f"{self.name}: example {index} is not UTF-8 ({error})") from None
        fields = ", ".join(sorted(k for k, v in example.items() if isinstance(v, bytes)))
        raise UserError(f"{self.name}: no text in field {self.field!r}; --field takes: {fields}")


def open_split(spec: str, field: str, read: Reader | None = None) -> TfdsSplit:
    """`c4/en`, `c4/en:validation`, `c4/en:3.1.0:train[:1%]` → what lies prepared on disk."""
    name, _, rest = spec.partition(":")
    version = re.match(r"(\d+\.\d+\.\d+)(?::|$)", rest)
    dataset = f"{name}:{version[1]}" if version else name
    split = (rest[version.end() :] if version else rest) or "train"
    source = _data_source(dataset, split)
    info = source.dataset_info
    whole = info.splits[re.split(r"[\[+]", split)[0]]
    size = int(whole.num_bytes) * len(source) // max(whole.num_examples, 1)
    full_name = f"{name}:{info.version}"
    return TfdsSplit(f"tfds:{full_name}:{split}", full_name, split, field, len(source), size, read)


@functools.lru_cache(maxsize=4)
def _data_source(dataset: str, split: str) -> Any:
    import tensorflow_datasets as tfds

    folder = os.environ.get("TFDS_DATA_DIR")
    try:
        return tfds.data_source(dataset, split=split, data_dir=folder, download=False)
    except Exception as error:  # TFDS raises many kinds, AssertionError and KeyError among them
        raise UserError(
            f"tfds:{dataset}:{split}: {first_line(error)}\n"
            f"Looked in {folder or '~/tensorflow_datasets'} (set TFDS_DATA_DIR to look elsewhere); "
            "the dataset must lie there in array_record form:\n"
            f"  tfds build {dataset.partition(':')[0]} --file_format=array_record"
        ) from error
