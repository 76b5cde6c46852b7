"""Safetensors headers, read without torch and checked before any tensor is read.

Format: 8 bytes, the header's length N as a little-endian unsigned integer; N bytes of JSON; the tensors' bytes.
The JSON maps a tensor's name to its dtype, shape and [begin, end) within the tensors' bytes.
Source: https://github.com/huggingface/safetensors#format
"""

import math
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from vila_core.checkpoint.json_files import Section, parse_json_object
from vila_core.errors import CheckpointError, shown
from vila_core.input_files import open_input

if TYPE_CHECKING:
    from typing_extensions import TypeIs

DTYPE_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8, "C64": 64,
}  # fmt: skip

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""
MAX_WEIGHT_FILE_BYTES = 512 * 1024**3
"""More than any shard."""
_MAX_CONTAINERS = 150_000
"""Objects and lists in a header: three per tensor."""
_MAX_DIMENSIONS = 16
_MAX_SIZE = 2**48


@dataclass(frozen=True)
class TensorEntry:
    """Location of one tensor: `key` in `file`, at `offset` bytes from the file's start (None inside a pickle)."""

    file: Path
    key: str
    dtype: str
    shape: tuple[int, ...]
    offset: int | None

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * DTYPE_BITS[self.dtype] // 8


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Return the tensors that the safetensors file at `path` declares, in file order.

    Raises:
        CheckpointError: the file is missing, truncated, or its header is damaged, overlapping or out of bounds.
    """
    try:
        with open_input(path, max_bytes=MAX_WEIGHT_FILE_BYTES, advice="Download the checkpoint again.") as file:
            size = os.fstat(file.fileno()).st_size
            text = _read_header_text(path, file, size)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from None
    header = parse_json_object(text, f"The header of {path}", max_containers=_MAX_CONTAINERS)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) for value in cast(dict[str, object], metadata).values()
    ):
        raise _damaged(path, f"its metadata is {shown(metadata)}, not an object of strings")
    start = 8 + len(text)
    entries = [_entry(path, name, value, start) for name, value in header.items()]
    entries.sort(key=lambda entry: (entry.offset or 0, entry.nbytes))
    _check_layout(path, entries, start, size)
    return {entry.key: entry for entry in entries}


def _read_header_text(path: Path, file: BinaryIO, size: int) -> bytes:
    prefix = file.read(8)
    if len(prefix) < 8:
        raise _damaged(path, f"it has {size} bytes, fewer than a header needs")
    (length,) = struct.unpack("<Q", prefix)
    if length > MAX_HEADER_BYTES:
        raise _damaged(
            path, f"its header claims {length} bytes, more than the {MAX_HEADER_BYTES} that the format allows"
        )
    if 8 + length > size:
        raise _damaged(path, f"its header claims {length} bytes, but the file has only {size}")
    if length == 0:
        raise _damaged(path, "it begins with zeros, as an unfinished download does")
    return file.read(length)


def _entry(path: Path, name: str, value: object, start: int) -> TensorEntry:
    if not isinstance(value, dict):
        raise _damaged(path, f"tensor '{name}' is not described by an object")
    section = Section(cast(dict[str, object], value), f"The header of {path}, tensor '{name}'")
    dtype = section.choice("dtype", tuple(DTYPE_BITS))
    shape, offsets = section.values.get("shape"), section.values.get("data_offsets")
    if not _are_sizes(shape) or len(shape) > _MAX_DIMENSIONS:
        raise _damaged(path, f"tensor '{name}' has shape {shown(shape)}")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise _damaged(path, f"tensor '{name}' has offsets {shown(offsets)}")
    begin, end = offsets
    entry = TensorEntry(path, name, dtype, tuple(shape), start + begin)
    if end - begin != entry.nbytes:
        raise _damaged(
            path,
            f"tensor '{name}' ({dtype}, {list(entry.shape)}) needs {entry.nbytes} bytes, but spans [{begin}, {end})",
        )
    return entry


def _are_sizes(value: object) -> "TypeIs[list[int]]":
    return isinstance(value, list) and all(
        isinstance(item, int) and not isinstance(item, bool) and 0 <= item < _MAX_SIZE
        for item in cast(list[object], value)
    )


def _check_layout(path: Path, entries: Iterable[TensorEntry], start: int, size: int) -> None:
    """Raise unless the tensors follow one another without gap or overlap and end with the file."""
    position = start
    for entry in entries:
        if entry.offset != position:
            kind = (
                "overlaps its neighbour"
                if entry.offset is not None and entry.offset < position
                else "leaves a gap before it"
            )
            raise _damaged(path, f"tensor '{entry.key}' {kind}")
        position += entry.nbytes
    if position > size:
        raise _damaged(path, f"it is truncated: its tensors need {position} bytes, the file has {size}")
    if position < size:
        raise _damaged(path, f"its tensors end at byte {position}, but the file has {size}")


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} is not a valid safetensors file: {why}. Download it again.")
