"""Writing safetensors files tensor by tensor: plan the layout from dtypes and shapes, then stream the bytes."""

import json
import struct
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from types import TracebackType

from vila_core.checkpoint.new_folder import write_json
from vila_core.checkpoint.tensors.headers import DTYPE_BITS, TensorEntry
from vila_core.checkpoint.tensors.index import SAFETENSORS_NAME

DEFAULT_SHARD_BYTES = 5_000_000_000
"""The default of transformers."""


class ShardWriter:
    """Writes a model's safetensors to `folder`: one file, or shards with an index if it exceeds `max_shard_bytes`.

    Use as a context manager; `write` each tensor once, in any order. Memory holds only the current chunk.
    """

    def __init__(self, folder: Path, tensors: Mapping[str, TensorEntry], max_shard_bytes: int = DEFAULT_SHARD_BYTES):
        self._folder = folder
        self._tensors = tensors
        self._shards = plan_shards(tensors, max_shard_bytes)
        self._places: dict[str, tuple[FileIO, int]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "ShardWriter":
        self._folder.mkdir(parents=True, exist_ok=True)
        count = len(self._shards)
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._shards, start=1):
            file_name = SAFETENSORS_NAME if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"
            weight_map |= dict.fromkeys(names, file_name)
            handle = self._stack.enter_context(FileIO(str(self._folder / file_name), "w"))
            header, offsets = encode_header({name: self._tensors[name] for name in names})
            _write_all(handle, header)
            self._places |= {name: (handle, len(header) + offset) for name, offset in offsets.items()}
        if count > 1:
            total = sum(entry.nbytes for entry in self._tensors.values())
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            write_json(self._folder / f"{SAFETENSORS_NAME}.index.json", index)
        return self

    def write(self, name: str, chunks: Iterable[bytes | memoryview]) -> None:
        """Write the bytes of one tensor, little-endian and row-major, given in chunks."""
        handle, offset = self._places.pop(name)
        handle.seek(offset)
        written = sum(_write_all(handle, chunk) for chunk in chunks)
        assert written == self._tensors[name].nbytes, f"{name}: {written} bytes of {self._tensors[name].nbytes}"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        assert kind is not None or not self._places, f"never written: {sorted(self._places)[:5]}"


def plan_shards(tensors: Mapping[str, TensorEntry], max_shard_bytes: int) -> list[list[str]]:
    """Return the names of each shard, in order. A shard ends before the tensor that would exceed the limit."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, entry in tensors.items():
        if shards[-1] and size + entry.nbytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += entry.nbytes
    return shards


def encode_header(tensors: Mapping[str, TensorEntry]) -> tuple[bytes, dict[str, int]]:
    """Return the header's bytes (length included) and each tensor's offset behind it.

    Wide dtypes come first, and the header is padded to eight bytes, so that every tensor is aligned.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offsets: dict[str, int] = {}
    position = 0
    for name in sorted(tensors, key=lambda item: -DTYPE_BITS[tensors[item].dtype]):
        entry = tensors[name]
        offsets[name] = position
        end = position + entry.nbytes
        header[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, offsets


def _write_all(handle: FileIO, chunk: bytes | memoryview) -> int:
    view = memoryview(chunk).cast("B")
    total = len(view)
    while len(view):
        view = view[handle.write(view) :]
    return total
