"""Numbers and bytes on their way to a GPU, without waiting for what it is computing."""

from collections.abc import Sequence

import torch
from torch import Tensor


def upload(values: Sequence[int] | Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Return `values` on `device`.

    A copy from ordinary memory waits until the GPU has done all it was given. One from pinned memory does not; PyTorch
    keeps that memory until the copy has been made.

    Args:
        values: numbers (int64 unless told otherwise), or a tensor in the main memory.
        device: any.
        dtype: of the numbers; a tensor keeps its own.
    """
    tensor = values if isinstance(values, Tensor) else torch.tensor(values, dtype=dtype or torch.int64)
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
