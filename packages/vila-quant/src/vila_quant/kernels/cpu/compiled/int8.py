"""Products of activations with int8 weights on a CPU, compiled for it by numba.

M rows, N outputs, K inputs
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vila_quant.kernels.cpu.compiled.kernel import multiply_bytes
from vila_quant.kernels.int8 import FEW_ROWS, multiply_panels, refuse_widths
from vila_quant.kernels.kernel import LinearShape


@dataclass(frozen=True)
class CompiledInt8Kernel:
    """Scheme "int8": the compiled product for few rows, panels for more."""

    def refusal(self, shape: LinearShape, device: torch.device, dtype: torch.dtype) -> str | None:
        return refuse_widths(shape, device)

    def multiply(self, x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
        if not 0 < len(x) <= FEW_ROWS:
            return multiply_panels(x, weight, weight_scale, bias)
        y = multiply_bytes(x, weight, weight_scale[:, 0])
        return y if bias is None else y + bias
