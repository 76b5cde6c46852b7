"""Linear layers with int8 or fp8 weights, one scale per output.

N outputs, K inputs
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from vila_core.ops.row_settings import RowFormat
from vila_quant.kernels.cpu.pages import large_pages
from vila_quant.kernels.kernel import EightBitKernel, LinearShape, RowKernel, Scheme
from vila_quant.kernels.registry import choose_eight_bit


class EightBitLinear(nn.Module):
    """`y = x Wᵀ + b` with eight-bit W; its names in a state dict are those of the file.

    Once loaded, `kernel` is the kernel that multiplies.

    Args:
        scheme: "int8" (weights only: a head), "w8a8" (int8 activations too) or "fp8" (e4m3 activations too).
        outputs: N.
        inputs: K.
        bias: whether the layer has a bias.
    """

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, scheme: Scheme, outputs: int, inputs: int, *, bias: bool):
        super().__init__()
        self.shape = LinearShape.eight_bit(scheme, outputs, inputs)
        dtype = torch.float8_e4m3fn if scheme == "fp8" else torch.int8
        self.register_buffer("weight", torch.zeros(outputs, inputs, dtype=dtype))
        # The loader casts float32 tensors to the model's dtype, but not double; `reset_buffers` makes it float32.
        self.register_buffer("weight_scale", torch.ones(outputs, 1, dtype=torch.float64))
        self.bias = nn.Parameter(torch.zeros(outputs), requires_grad=False) if bias else None
        self.kernel: EightBitKernel | None = None

    def reset_buffers(self, device: torch.device, dtype: torch.dtype) -> None:
        """Choose the kernel for `device` and `dtype`, and convert the scales to float32."""
        self.kernel = choose_eight_bit(self.shape, device, dtype)
        if device.type == "cpu" and self.shape.scheme == "int8":
            self.weight = large_pages(self.weight.shape, torch.int8).copy_(self.weight)
        self.weight_scale = self.weight_scale.to(device, torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        """`x [..., K]` -> `[..., N]` in the dtype of `x`."""
        assert self.kernel is not None, "the weights are not loaded"
        rows = x.reshape(-1, self.shape.inputs)
        y = self.kernel.multiply(rows, self.weight, self.weight_scale, self.bias)
        return y.view(*x.shape[:-1], self.shape.outputs)

    @property
    def row_format(self) -> RowFormat | None:
        """How the kernel quantizes its input; None if that cannot be done ahead (see `RowLinear`)."""
        kernel = self._row_kernel
        return None if kernel is None else kernel.row_format

    @property
    def _row_kernel(self) -> RowKernel | None:
        return None if self.kernel is None else self.kernel.row_kernel

    def joined(self, others: Sequence[nn.Module]) -> Self | None:
        """Return this linear and `others` as one, of whose weights theirs become parts (see `RowLinear`)."""
        linears = [self, *(other for other in others if type(other) is type(self))]
        alike = {(x.shape.inputs, x.shape.scheme, x.row_format, x.bias is None) for x in linears}
        if len(linears) <= len(others) or len(alike) > 1 or self.kernel is None:
            return None
        outputs = [linear.shape.outputs for linear in linears]
        with torch.device("meta"):
            whole = type(self)(self.shape.scheme, sum(outputs), self.shape.inputs, bias=self.bias is not None)
        whole.kernel = self.kernel
        for name in ("weight", "weight_scale"):
            whole.register_buffer(name, torch.cat([getattr(linear, name) for linear in linears]))
            for linear, part in zip(linears, getattr(whole, name).split(outputs), strict=True):
                linear.register_buffer(name, part)
        if self.bias is not None:
            biases = torch.cat([linear.bias.detach() for linear in linears if linear.bias is not None])
            whole.bias = nn.Parameter(biases, requires_grad=False)
        return whole

    def multiply_rows(self, x: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        """Codes `x [M, K]` with scales `[M, 1]` -> `[M, N]` in `dtype`; only where `row_format` is not None."""
        kernel = self._row_kernel
        assert kernel is not None
        return kernel.multiply_rows(x, scales, self.weight, self.weight_scale, self.bias, dtype)

    def extra_repr(self) -> str:
        kernel = "not loaded" if self.kernel is None else self.kernel.name
        return f"in={self.shape.inputs}, out={self.shape.outputs}, scheme={self.shape.scheme}, kernel={kernel}"
