"""Bytes of tensors in a file or in memory, for copying unchanged. Safetensors are copied without torch."""

from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from vila_core.checkpoint.tensors.headers import TensorEntry
from vila_core.errors import CheckpointError

if TYPE_CHECKING:
    import torch

CHUNK_BYTES = 16 * 1024 * 1024


def stream_bytes(file: Path, entries: Mapping[str, TensorEntry]) -> Iterator[tuple[str, Iterator[bytes | memoryview]]]:
    """Yield (name, bytes in chunks) for `entries`, all in `file`.

    Raises:
        CheckpointError: the file vanished, shrank or cannot be read.
    """
    if file.suffix != ".safetensors":
        from vila_core.checkpoint.tensors.pickles import load_pickle

        tensors = load_pickle(file)
        for name, entry in entries.items():
            yield name, iter([tensor_bytes(tensors.pop(entry.key))])
        return
    try:
        handle = FileIO(str(file))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}.") from None
    with handle:
        for name, entry in sorted(entries.items(), key=lambda item: item[1].offset or 0):
            yield name, _chunks(handle, entry)


def _chunks(handle: FileIO, entry: TensorEntry) -> Iterator[bytes | memoryview]:
    position, left = entry.offset or 0, entry.nbytes
    while left:
        try:
            handle.seek(position)
            chunk = handle.read(min(left, CHUNK_BYTES))
        except OSError as error:
            raise CheckpointError(f"{entry.file} cannot be read: {error.strerror or error}.") from None
        if not chunk:
            raise CheckpointError(f"{entry.file} ended inside tensor '{entry.key}': the file was cut while being read.")
        yield chunk
        position, left = position + len(chunk), left - len(chunk)


def tensor_bytes(tensor: "torch.Tensor") -> memoryview:
    """Return the row-major bytes of a tensor on any device."""
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
