"""The safetensors format, read without trust.

A file is eight bytes that give the length of a JSON header, the header, and the tensors' bytes.
The header is checked in full before anything is read, since everything that follows (slicing,
copying without decoding) believes its offsets.

The safetensors library reads whole tensors and not where they lie, which range requests and
byte-wise copies go by; its writer wants all tensors at once; without torch it reads no F8 (0.8); of
a damaged header it names the first fault alone. No jax in this module.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import struct
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from chopjax.disk.files import LFS_ADVICE, LFS_POINTER
from chopjax.errors import UserError, listing

# The format's names → numpy. Types narrower than a byte are missing on purpose.
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "C64": np.dtype(np.complex64),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
FLOATS = ("F8_E4M3", "F8_E5M2", "F16", "BF16", "F32", "F64")

MAX_HEADER_BYTES = 100_000_000  # the limit of the reference implementation
PREFIX_BYTES = 8
MAX_AXES = 64  # numpy's


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Where a tensor's bytes are."""

    name: str
    dtype: str  # a key of DTYPES
    shape: tuple[int, ...]
    file: Path
    start: int  # absolute offset in the file, bytes
    nbytes: int

    def open(self) -> BinaryIO:
        """The file, to read `nbytes` from `start`. Raises where they are not on this machine."""
        return self.file.open("rb")

    def read(self) -> np.ndarray:
        """A read-only view of the file, mapped into memory; pages are read as they are touched.

        Each call maps this tensor alone, so that the memory goes when the array does.
        """
        dtype = DTYPES[self.dtype]
        if not self.nbytes:
            return np.empty(self.shape, dtype)
        with self.open() as file:
            raw = np.memmap(file, np.uint8, "r", self.start, self.nbytes)
        return raw.view(np.ndarray).view(dtype).reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself."""

    tensors: dict[str, TensorInfo]  # in the order of their bytes
    metadata: dict[str, str]


def header_length(prefix: bytes, file_bytes: int, file: Path | str) -> int:
    """Length of the JSON header in bytes, from the file's first eight."""
    if len(prefix) < PREFIX_BYTES:
        raise UserError(
            f"{file}: only {file_bytes} bytes long, not a safetensors file; download it again"
        )
    (length,) = struct.unpack("<Q", prefix[:PREFIX_BYTES])
    if LFS_POINTER.startswith(prefix[:PREFIX_BYTES]):
        raise UserError(f"{file}: {LFS_ADVICE}")
    if length > MAX_HEADER_BYTES:
        raise UserError(
            f"{file}: not a safetensors file (its first bytes claim a header of {length} bytes)"
        )
    if PREFIX_BYTES + length > file_bytes:
        raise UserError(
            f"{file}: truncated: the header takes {length} bytes and the file has "
            f"{file_bytes}; download it again"
        )
    return int(length)


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Name → place, of every tensor in a file. Raises UserError on any lie in the header."""
    return open_header(file).tensors


def open_header(file: Path) -> Header:
    """The validated header of a local file."""
    file_bytes = file.stat().st_size
    with file.open("rb") as stream:
        length = header_length(stream.read(PREFIX_BYTES), file_bytes, file)
        return parse_header(stream.read(length), file_bytes, file)


def parse_header(raw: bytes, file_bytes: int, file: Path) -> Header:
    """Check the JSON header against the size of the whole file.

    Raises UserError that lists every problem: types, names, dtype × shape against bytes, offsets
    that overlap, leave holes or end elsewhere than the file does.
    """
    entries = _json_object(raw, file)
    metadata = entries.pop("__metadata__", {})
    problems: list[str] = []
    if not isinstance(metadata, dict) or not all(map(_is_text, [*metadata, *metadata.values()])):
        problems.append("__metadata__ is not an object of strings")
    data_start = PREFIX_BYTES + len(raw)
    parsed = [_tensor(name, entry, data_start, file) for name, entry in entries.items()]
    problems += [tensor for tensor in parsed if isinstance(tensor, str)]
    tensors = [tensor for tensor in parsed if isinstance(tensor, TensorInfo)]
    tensors.sort(key=lambda t: (t.start, t.start + t.nbytes))
    if not problems:  # with a broken entry left out, its neighbours would look wrong, too
        problems += _coverage(tensors, data_start, file_bytes)
    if problems:
        raise UserError(f"{file}: damaged safetensors header:\n{listing(problems)}")
    return Header({tensor.name: tensor for tensor in tensors}, metadata)


def _json_object(raw: bytes, file: Path) -> dict[str, Any]:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            counts = collections.Counter(name for name, _ in pairs)
            twice = [repr(name) for name, count in counts.items() if count > 1]
            raise ValueError(f"the same name twice: {', '.join(twice[:4])}")
        return result

    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=no_duplicates)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{file}: the safetensors header is not valid JSON ({error}); download it again"
        ) from None
    if not isinstance(header, dict):
        raise UserError(f"{file}: the safetensors header is not a JSON object")
    return header


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _is_text(value: object) -> bool:
    """A string that can be written again: JSON can spell halves of characters."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _tensor(name: str, entry: Any, data_start: int, file: Path) -> TensorInfo | str:
    """The entry as a TensorInfo, or what is wrong with it."""
    if not name.isprintable():
        return f"{name!r}: the name has control characters"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        return f"{name}: needs exactly dtype, shape and data_offsets"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        return f"{name}: dtype {dtype!r} is not supported"
    if not isinstance(shape, list) or len(shape) > MAX_AXES or not all(map(_count, shape)):
        return f"{name}: the shape is not a list of sizes"
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_count, offsets)):
        return f"{name}: data_offsets are not two byte positions"
    begin, end = offsets
    nbytes = math.prod(shape) * DTYPES[dtype].itemsize
    if end - begin != nbytes:
        return f"{name}: {dtype} {shape} takes {nbytes} bytes, data_offsets say {end - begin}"
    return TensorInfo(name, dtype, tuple(shape), file, data_start + begin, nbytes)


def _coverage(tensors: list[TensorInfo], data_start: int, file_bytes: int) -> list[str]:
    """The tensors must fill the data part without overlap, hole or remainder."""
    problems = []
    position = data_start
    for tensor in tensors:
        if tensor.start < position:
            problems.append(f"{tensor.name}: overlaps the tensor before it")
        elif tensor.start > position:
            problems.append(f"{tensor.name}: {tensor.start - position} unused bytes before it")
        position = max(position, tensor.start + tensor.nbytes)
    if position > file_bytes:
        problems.append(
            f"truncated: the tensors end at byte {position}, the file has {file_bytes}; "
            "download it again"
        )
    elif position < file_bytes:
        problems.append(f"{file_bytes - position} bytes after the last tensor belong to none")
    return problems
