"""Reading tensors to a device: host memory holds one tensor (CPU) or two staging buffers (CUDA), never a shard."""

from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path

import torch

from vila_core.checkpoint.tensors.dtypes import DTYPES
from vila_core.checkpoint.tensors.headers import TensorEntry
from vila_core.errors import CheckpointError

STAGING_BYTES = 64 * 1024 * 1024


def read_tensors(
    file: Path, entries: Mapping[str, TensorEntry], device: torch.device | str = "cpu"
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor on `device` in its stored dtype) for `entries`, all in `file`, in file order.

    Raises:
        CheckpointError: the file vanished, shrank or cannot be read.
    """
    device = torch.device(device)
    if file.suffix != ".safetensors":
        yield from _read_pickled(file, entries, device)
        return
    staging = _Staging(device) if device.type == "cuda" else None
    try:
        with FileIO(str(file)) as handle:
            for name, entry in sorted(entries.items(), key=lambda item: item[1].offset or 0):
                handle.seek(entry.offset or 0)
                raw = staging.read(handle, entry) if staging else _read_host(handle, entry).to(device)
                yield name, raw.view(DTYPES[entry.dtype]).reshape(entry.shape)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}.") from None


def _read_pickled(
    file: Path, entries: Mapping[str, TensorEntry], device: torch.device
) -> Iterator[tuple[str, torch.Tensor]]:
    from vila_core.checkpoint.tensors.pickles import load_pickle

    tensors = load_pickle(file)
    for name, entry in entries.items():
        # Copy, since the mapped pages go away when the file is closed.
        yield name, tensors.pop(entry.key).to(device, copy=True)


def _read_host(handle: FileIO, entry: TensorEntry) -> torch.Tensor:
    """Return the tensor's bytes `[nbytes]` uint8 in new host memory."""
    raw = torch.empty(entry.nbytes, dtype=torch.uint8)
    _fill(handle, raw.numpy().data, entry)
    return raw


def _fill(handle: FileIO, view: memoryview, entry: TensorEntry) -> None:
    while len(view):
        count = handle.readinto(view)
        if not count:
            raise CheckpointError(f"{entry.file} ended inside tensor '{entry.key}': the file was cut while being read.")
        view = view[count:]


class _Staging:
    """Two pinned buffers: while one is copied to the GPU, the file fills the other."""

    def __init__(self, device: torch.device):
        self._device = device
        self._buffers = [torch.empty(STAGING_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self._copied = [torch.cuda.Event() for _ in range(2)]
        self._turn = 0

    def read(self, handle: FileIO, entry: TensorEntry) -> torch.Tensor:
        """Return the tensor's bytes `[nbytes]` uint8 on the GPU."""
        target = torch.empty(entry.nbytes, dtype=torch.uint8, device=self._device)
        stream = torch.cuda.current_stream(self._device)
        for start in range(0, entry.nbytes, STAGING_BYTES):
            stop = min(start + STAGING_BYTES, entry.nbytes)
            buffer, copied = self._buffers[self._turn], self._copied[self._turn]
            copied.synchronize()  # until the last copy from this buffer is done
            _fill(handle, buffer[: stop - start].numpy().data, entry)
            target[start:stop].copy_(buffer[: stop - start], non_blocking=True)
            copied.record(stream)
            self._turn = 1 - self._turn
        return target
