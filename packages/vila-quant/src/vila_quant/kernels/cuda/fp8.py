"""The scheme "fp8" on an NVIDIA GPU: a Triton kernel quantizes the rows, and `torch._scaled_mm` multiplies.

M rows, N outputs, K inputs
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vila_core.ops.row_settings import RowFormat
from vila_core.ops.rows import process_rows
from vila_quant.kernels.fp8 import FP8, LARGEST, SMALLEST_RANGE, multiply_fp8, refuse_fp8
from vila_quant.kernels.kernel import LinearShape

FORMAT = RowFormat(FP8, LARGEST, SMALLEST_RANGE)


@dataclass(frozen=True)
class Fp8TritonKernel:
    """Fp8 weights times fp8 activations."""

    @property
    def row_format(self) -> RowFormat:
        return FORMAT

    def refusal(self, shape: LinearShape, device: torch.device, dtype: torch.dtype) -> str | None:
        return refuse_fp8(shape, device)

    def multiply(self, x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
        q, scale, _ = process_rows(x.contiguous(), quantize=self.row_format)
        assert scale is not None
        return self.multiply_rows(q, scale, weight, weight_scale, bias, x.dtype)

    def multiply_rows(
        self, x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        return multiply_fp8(x, x_scale, weight, weight_scale, bias).to(dtype)
