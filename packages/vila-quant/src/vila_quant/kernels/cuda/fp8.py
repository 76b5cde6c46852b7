"""The scheme "fp8" on an NVIDIA GPU: a Triton kernel quantizes the rows, and `torch._scaled_mm` multiplies.

M rows, N outputs, K inputs
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vila_quant.kernels.cuda.rows_triton import quantize_rows
from vila_quant.kernels.fp8 import FP8, LARGEST, SMALLEST_RANGE, multiply_fp8, refuse_fp8
from vila_quant.kernels.kernel import LinearShape


@dataclass(frozen=True)
class Fp8TritonKernel:
    """Fp8 weights times fp8 activations."""

    def refusal(self, shape: LinearShape, device: torch.device, dtype: torch.dtype) -> str | None:
        return refuse_fp8(shape, device)

    def multiply(self, x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
        q, scale = quantize_rows(x, FP8, LARGEST, SMALLEST_RANGE)
        return multiply_fp8(q, scale, weight, weight_scale, bias).to(x.dtype)
