"""Writing safetensors tensor by tensor, in shards of bounded size. No jax."""

from __future__ import annotations

import ctypes
import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from chopjax.checkpoint.packed import Unpacked
from chopjax.checkpoint.safetensors_file import DTYPES, NAMES, TensorInfo
from chopjax.checkpoint.source import INDEX, SINGLE
from chopjax.disk.atomic import check_room

MAX_SHARD_BYTES = 5_000_000_000
COPY_BYTES = 1 << 20
BATCH_BYTES = 1 << 26  # between two looks at the progress bar, or two requests to the disk
SYNC_FILE_RANGE_WRITE = 2  # of linux/fs.h
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)  # None but on Linux

Buffers = Iterable[bytes | memoryview | np.ndarray]


class Tensor(NamedTuple):
    """A tensor to write. `data` is looked at when its turn comes, and let go after.

    data: the bytes in another file, which are copied, or what is made of codes; an array; or a
    function that gives an array, or buffers that are written one after another.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: TensorInfo | np.ndarray | Callable[[], np.ndarray | Buffers]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def write_safetensors(
    folder: Path,
    tensors: Iterable[Tensor],
    max_shard_bytes: int = MAX_SHARD_BYTES,
    metadata: Mapping[str, str] | None = None,
    advance: Callable[[int], None] = lambda nbytes: None,
) -> list[Path]:
    """Write model.safetensors, or shards and their index where it would be too large.

    A shard is at most `max_shard_bytes` of tensors, save that a larger tensor has one of its own.
    metadata: the files' string pairs; `format: pt`, which transformers insists on, by default.
    advance: called with the bytes written, for a progress bar.
    Returns the files written. Raises UserError when they cannot fit on the disk.
    """
    shards = plan_shards(list(tensors), max_shard_bytes)
    total = sum(tensor.nbytes for shard in shards for tensor in shard)
    check_room(folder, total)
    count = len(shards)
    names = [SINGLE] if count == 1 else [_shard_name(i, count) for i in range(count)]
    for name, shard in zip(names, shards, strict=True):
        write_file(folder / name, shard, metadata or {"format": "pt"}, advance)
    if count > 1:
        where = {t.name: name for name, shard in zip(names, shards, strict=True) for t in shard}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return [folder / name for name in names]


def plan_shards(tensors: Sequence[Tensor], max_shard_bytes: int) -> list[list[Tensor]]:
    """Fill shards in the given order."""
    shards: list[list[Tensor]] = [[]]
    used = 0
    for tensor in tensors:
        if shards[-1] and used + tensor.nbytes > max_shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(tensor)
        used += tensor.nbytes
    return shards


def _shard_name(index: int, count: int) -> str:
    return f"model-{index + 1:05}-of-{count:05}.safetensors"


def write_file(
    path: Path, tensors: list[Tensor], metadata: Mapping[str, str], advance: Callable[[int], None]
) -> None:
    """Write one safetensors file, whatever its size. The rest is as in `write_safetensors`."""
    # Wider types first, so that every tensor is aligned to its own type in the mapped file.
    tensors = sorted(tensors, key=lambda tensor: -DTYPES[tensor.dtype].itemsize)
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    position = 0
    for tensor in tensors:
        if tensor.name in header:
            raise ValueError(f"two tensors named {tensor.name}")
        end = position + tensor.nbytes
        offsets = [position, end]
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": offsets,
        }
        position = end
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as stream:
        begun = 0
        end = stream.write(struct.pack("<Q", len(raw)) + raw)
        for tensor in tensors:
            written = _write_tensor(stream, tensor, advance)
            if written != tensor.nbytes:
                raise ValueError(f"{tensor.name}: {written} bytes, {tensor.nbytes} were announced")
            end += written
            if end - begun >= BATCH_BYTES:
                stream.flush()
                _begin_writeback(stream.fileno(), begun, end - begun)
                begun = end


def _begin_writeback(file: int, start: int, nbytes: int) -> None:
    """Ask Linux to begin writing a range to the disk.

    So the disk works while we copy, and flushing the file at the end finds little left to do.
    """
    if _sync_file_range:
        _sync_file_range(file, ctypes.c_int64(start), ctypes.c_int64(nbytes), SYNC_FILE_RANGE_WRITE)


def _write_tensor(stream: BinaryIO, tensor: Tensor, advance: Callable[[int], None]) -> int:
    """Returns the bytes written."""
    data = tensor.data() if callable(tensor.data) else tensor.data
    if isinstance(data, Unpacked):
        data = data.pieces()
    if isinstance(data, TensorInfo):
        stream.flush()
        with data.open() as source:
            return _copy(source.fileno(), data.start, data.nbytes, stream.fileno(), advance)
    written = 0
    for buffer in [data] if isinstance(data, np.ndarray) else data:
        if isinstance(buffer, np.ndarray):
            if buffer is data and NAMES.get(buffer.dtype) != tensor.dtype:
                raise ValueError(f"{tensor.name}: {buffer.dtype} is not {tensor.dtype}")
            # As bytes: extension types such as bfloat16 have no buffer interface.
            buffer = np.ascontiguousarray(buffer).reshape(-1).view(np.uint8).data
        stream.write(buffer)
        written += len(buffer)
        advance(len(buffer))
    return written


def _copy(source: int, start: int, nbytes: int, target: int, advance: Callable[[int], None]) -> int:
    """Copy a range between open files, to the target's position.

    A buffer that stays in the processor's cache is as fast as the kernel's own copy where source
    and target lie alike within their pages, and up to 1.6 times as fast where they do not, which is
    the rule once layers have gone (copy_file_range and sendfile, Linux 6.18, ext4).
    """
    buffer = memoryview(bytearray(min(COPY_BYTES, nbytes)))
    done = told = 0
    while done < nbytes:
        count = os.preadv(source, [buffer[: nbytes - done]], start + done)
        if not count:
            break  # the file became shorter; the caller's count tells
        left = buffer[:count]
        while left:
            left = left[os.write(target, left) :]
        done += count
        if done == nbytes or done - told >= BATCH_BYTES:
            advance(done - told)
            told = done
    return done
