"""Weights in memory, such as those of a trained model to save."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from vila_core.checkpoint.tensors.copying import tensor_bytes
from vila_core.checkpoint.tensors.dtypes import DTYPE_NAMES
from vila_core.checkpoint.tensors.headers import TensorEntry

IN_MEMORY = Path("<memory>")


class MemoryWeights:
    """Tensors by canonical name, on any device. Floating-point tensors are cast to `dtype`, if given, one at a time."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None = None):
        self._tensors = tensors
        self._dtype = dtype
        self._entries = {
            name: TensorEntry(IN_MEMORY, name, DTYPE_NAMES[self._target(tensor)], tuple(tensor.shape), None)
            for name, tensor in tensors.items()
        }

    @property
    def entries(self) -> Mapping[str, TensorEntry]:
        return self._entries

    def shards(self, device: torch.device | str = "cpu") -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name, tensor on `device`)."""
        for name, tensor in self._tensors.items():
            yield name, tensor.detach().to(device, self._target(tensor))

    def stream(self) -> Iterator[tuple[str, Iterator[bytes | memoryview]]]:
        """Yield (name, its bytes)."""
        for name, tensor in self._tensors.items():
            yield name, iter([tensor_bytes(tensor.detach().to(self._target(tensor)))])

    def _target(self, tensor: torch.Tensor) -> torch.dtype:
        return self._dtype if self._dtype is not None and tensor.is_floating_point() else tensor.dtype
