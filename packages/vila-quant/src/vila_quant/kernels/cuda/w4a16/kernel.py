"""W4A16 as a kernel of the hook `vila_kernels`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vila_core.ops.support import DTYPES, refusal
from vila_quant.kernels.cuda.w4a16.layout import GROUP_SIZES, W4Weight
from vila_quant.kernels.kernel import LinearShape, Unavailable
from vila_quant.packing.groupwise import GroupwiseWeight

NAME = "cuda-w4a16"


@dataclass(frozen=True)
class W4A16Kernel:
    """Four-bit weights times fp16 or bf16 activations, in Triton."""

    name: str = NAME
    target: str = "NVIDIA GPUs from sm80"
    priority: int = 100

    def refusal(self, shape: LinearShape, device: torch.device, dtype: torch.dtype) -> str | None:
        unfit = shape.unfit(GROUP_SIZES)
        if unfit is not None or device.type != "cuda" or dtype not in DTYPES:
            return unfit or refusal(device, dtype)
        if not torch.cuda.is_available():
            return Unavailable("there is no such GPU on this machine")
        reason = refusal(device, dtype)
        return None if reason is None else Unavailable(reason)

    def pack(self, weight: GroupwiseWeight, device: torch.device, dtype: torch.dtype) -> Sequence[Tensor]:
        del dtype
        return (W4Weight.pack(weight.q, weight.scales, weight.zeros, device).packed,)

    def multiply(self, x: Tensor, packed: Sequence[Tensor], shape: LinearShape) -> Tensor:
        from vila_quant.kernels.cuda.w4a16.ops import w4a16_matmul  # needs Triton

        return w4a16_matmul(x, packed[0], None, shape.outputs, shape.group_size, None)
