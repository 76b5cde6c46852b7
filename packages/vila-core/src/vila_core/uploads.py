"""Numbers and bytes on their way to a GPU, without waiting for what it is computing.

A copy from ordinary memory waits until the GPU has done all it was given; one from pinned memory does not. Pinning
memory for each copy takes 0.2 ms on some hosts, so values are copied into buffers that are pinned once.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

SMALL_BYTES, SMALL_BUFFERS = 1 << 16, 16
LARGE_BYTES, LARGE_BUFFERS = 1 << 23, 4
"""A large buffer grows to what was copied, up to this. Values that are larger are pinned for their copy alone."""


NUMBERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""What any numbers of so many bytes are copied as; numpy does not know them all."""


def upload(values: Sequence[int] | Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Return `values` on `device`.

    Args:
        values: numbers (int64 by default), or a tensor in the main memory.
        device: any.
        dtype: of the numbers; a tensor keeps its own.
    """
    tensor = values if isinstance(values, Tensor) else torch.tensor(values, dtype=dtype or torch.int64)
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return upload_into(torch.empty_like(tensor, device=device), tensor)


def upload_into(target: Tensor, values: Tensor) -> Tensor:
    """Copy `values`, in the main memory, into `target` of their shape and dtype; return it."""
    if target.device.type != "cuda":
        return target.copy_(values)
    size = values.nbytes
    buffer = _buffers(target.device).take(size) if size <= LARGE_BYTES else None
    if buffer is None:
        return target.copy_(values.pin_memory(), non_blocking=True)
    # The order of the target's memory, so that the GPU copies one block.
    staged = buffer.memory[:size].view(values.dtype).as_strided(target.size(), target.stride())
    # Not by PyTorch: its threads take milliseconds to start where processors are shared.
    kind = NUMBERS[values.itemsize]
    np.copyto(staged.view(kind).numpy(), values.view(kind).numpy())
    target.copy_(staged, non_blocking=True)
    buffer.sent.record(torch.cuda.current_stream(target.device))
    buffer.is_free = True
    return target


@dataclass
class _Buffer:
    """Pinned memory.

    Attributes:
        memory: uint8.
        sent: recorded behind the last copy to the GPU.
        is_free: whether no thread is filling it.
    """

    memory: Tensor
    sent: torch.cuda.Event
    is_free: bool = True


class _Buffers:
    """The buffers of a GPU, which take turns."""

    def __init__(self):
        self._lock = threading.Lock()
        self._small: list[_Buffer] = []
        self._large: list[_Buffer] = []

    def take(self, size: int) -> _Buffer | None:
        """Return a buffer of at least `size` bytes; None if all are in use."""
        is_small = size <= SMALL_BYTES
        buffers, most = (self._small, SMALL_BUFFERS) if is_small else (self._large, LARGE_BUFFERS)
        with self._lock:
            if len(buffers) < most:
                buffers.append(_Buffer(_pinned(max(size, SMALL_BYTES)), torch.cuda.Event()))
            else:
                buffers.append(buffers.pop(0))
            buffer = buffers[-1]
            if not (buffer.is_free and buffer.sent.query()):
                return None
            buffer.is_free = False
        if len(buffer.memory) < size:
            buffer.memory = _pinned(size)
        return buffer


@torch.inference_mode(False)
def _pinned(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)


@cache
def _buffers(device: torch.device) -> _Buffers:
    del device  # each has its own, since an event belongs to one
    return _Buffers()
