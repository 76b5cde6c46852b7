"""The reference kernel: dequantizes once, in the dtype of the activations. Runs everywhere; saves no memory."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vila_quant.kernels.kernel import LinearShape
from vila_quant.packing.groupwise import GroupwiseWeight


@dataclass(frozen=True)
class ReferenceKernel:
    """The reference for all other int4 kernels."""

    name: str = "reference"
    target: str = "any"
    priority: int = 0

    def refusal(self, shape: LinearShape, device: torch.device, dtype: torch.dtype) -> str | None:
        return None

    def pack(self, weight: GroupwiseWeight, device: torch.device, dtype: torch.dtype) -> Sequence[Tensor]:
        return (weight.dequantize().to(device, dtype),)

    def multiply(self, x: Tensor, packed: Sequence[Tensor], shape: LinearShape) -> Tensor:
        return F.linear(x, packed[0])
