"""The scheme "w8a8" on an NVIDIA GPU, in two Triton kernels: one quantizes the rows, one multiplies and scales.

M rows, N outputs, K inputs
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vila_core.ops.row_settings import RowFormat
from vila_core.ops.rows import process_rows
from vila_quant.kernels.cuda.int8_triton import multiply_int8
from vila_quant.kernels.int8 import LARGEST, SMALLEST_RANGE
from vila_quant.kernels.kernel import LinearShape

FORMAT = RowFormat(torch.int8, LARGEST, SMALLEST_RANGE)


@dataclass(frozen=True)
class W8A8TritonKernel:
    """Int8 weights times int8 activations."""

    @property
    def row_format(self) -> RowFormat:
        return FORMAT

    def refusal(self, shape: LinearShape, device: torch.device, dtype: torch.dtype) -> str | None:
        return None if device.type == "cuda" else f"it runs on a GPU, not on {device.type}"

    def multiply(self, x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
        q, scale, _ = process_rows(x.contiguous(), quantize=self.row_format)
        assert scale is not None
        return self.multiply_rows(q, scale, weight, weight_scale, bias, x.dtype)

    def multiply_rows(
        self, x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        return multiply_int8(x, x_scale, weight, weight_scale, bias, dtype)
