"""The scheme "w8a8" on an NVIDIA GPU, in two Triton kernels: one quantizes the rows, one multiplies and scales.

M rows, N outputs, K inputs
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vila_quant.kernels.cuda.int8_triton import multiply_int8
from vila_quant.kernels.cuda.rows_triton import quantize_rows
from vila_quant.kernels.int8 import LARGEST, SMALLEST_RANGE
from vila_quant.kernels.kernel import LinearShape


@dataclass(frozen=True)
class W8A8TritonKernel:
    """Int8 weights times int8 activations."""

    def refusal(self, shape: LinearShape, device: torch.device, dtype: torch.dtype) -> str | None:
        return None if device.type == "cuda" else f"it runs on a GPU, not on {device.type}"

    def multiply(self, x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
        q, scale = quantize_rows(x, torch.int8, LARGEST, SMALLEST_RANGE)
        return multiply_int8(q, scale, weight, weight_scale, bias, x.dtype)
