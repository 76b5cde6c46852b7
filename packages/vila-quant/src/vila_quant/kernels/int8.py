"""Products with int8 weights, symmetric, one scale per output.

M rows, N outputs, K inputs

    y = x (q · scale)ᵀ + bias,    q int8 in -127 … 127

The scheme "int8" keeps activations as they are; "w8a8" quantizes them too, one scale per row, so that the product
is one of integers:

    x ≈ x_q · x_scale,   x_scale = max|x| / 127 of each row,   y = (x_q qᵀ) · scale · x_scale + bias
"""

# PyTorch has no public names for these products.
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vila_quant.kernels.kernel import LinearShape

PANEL_ELEMENTS = 1 << 24
"""Weights dequantized at once: 32 MB of bf16, whereas the whole lm_head of an 8B model would take 1 GB."""

FEW_ROWS = 4
"""Up to this many rows, the CPU products that read one byte per weight are faster than dequantized panels."""

LARGEST = 127
"""The codes are symmetric: -128 is not used."""

SMALLEST_RANGE = 1e-5
"""Rows of zeros get the scale of this magnitude, to avoid division by zero (as in llm-awq)."""

EXACT_COLUMNS = 1024
"""Number of int8 products (at most 127² each) whose sum float32 represents exactly: below 2²⁴."""

WHOLE_VECTORS = 64
"""PyTorch's int8 product reads past the end of rows that are not a multiple of this width, without a check."""


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize each row to int8 by its largest magnitude, in the dtype of `x` (float16 equals llm-awq bit for bit).

    `x [M, K]`, any floating dtype -> codes `[M, K]` int8 and scales `[M, 1]` in the dtype of `x`.
    """
    scale = x.abs().amax(dim=-1, keepdim=True).clamp(min=SMALLEST_RANGE) / LARGEST
    return torch.round(x / scale).to(torch.int8), scale


def multiply_int8(x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply codes exactly, and scale the sums in float32.

    `x [M, K]` int8, `x_scale [M, 1]`, `weight [N, K]` int8, `weight_scale [N, 1]`, `bias [N]` -> `[M, N]` float32.
    """
    y = integer_product(x, weight).float() * weight_scale.T.float() * x_scale.float()
    return y if bias is None else y + bias.float()


def integer_product(x: Tensor, weight: Tensor) -> Tensor:
    """`x [M, K]` int8, `weight [N, K]` int8 -> `x weightᵀ [M, N]`, exact, int32.

    Uses `torch._int_mm` where the hardware has instructions for it. Elsewhere that is a scalar loop, so slices of K
    whose sums float32 represents exactly are multiplied instead.
    """
    if x.is_cuda:
        return _int_mm_cuda(x, weight)
    if x.device.type == "cpu" and torch.cpu._is_vnni_supported():
        return torch._int_mm(x, weight.T)
    slices = zip(x.split(EXACT_COLUMNS, dim=1), weight.split(EXACT_COLUMNS, dim=1), strict=True)
    total = torch.zeros(x.shape[0], weight.shape[0], dtype=torch.int32, device=x.device)
    for a, b in slices:
        total += F.linear(a.float(), b.float()).int()
    return total


def _int_mm_cuda(x: Tensor, weight: Tensor) -> Tensor:
    """Pad to what cuBLAS takes (more than 16 rows, other sizes multiples of 8), multiply, and cut the padding off."""
    (rows, columns), outputs = x.shape, weight.shape[0]
    more_rows, more_columns, more_outputs = max(0, 32 - rows), -columns % 8, -outputs % 8
    x = F.pad(x, (0, more_columns, 0, more_rows)) if more_rows or more_columns else x
    weight = F.pad(weight, (0, more_columns, 0, more_outputs)) if more_outputs or more_columns else weight
    return torch._int_mm(x, weight.T)[:rows, :outputs]


def multiply_panels(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """Dequantize the weight a panel at a time and multiply; arguments as for `EightBitKernel.multiply`."""
    step = max(1, PANEL_ELEMENTS // weight.shape[1])
    panels = [F.linear(x, panel.to(x.dtype)) for panel in weight.split(step)]
    y = torch.cat(panels, dim=-1) * weight_scale[:, 0].to(x.dtype)
    return y if bias is None else y + bias


def refuse_widths(shape: LinearShape, device: torch.device) -> str | None:
    """Return why a CPU product that reads whole vectors cannot run the layer; None if it can."""
    if device.type != "cpu":
        return f"it runs on a CPU, not on {device.type}"
    if shape.inputs % WHOLE_VECTORS:
        return f"it takes a multiple of {WHOLE_VECTORS} inputs, not {shape.inputs}"
    return None


@dataclass(frozen=True)
class Int8PackKernel:
    """Scheme "int8" on a CPU in bf16: PyTorch's int8 product for few rows, panels for more."""

    def refusal(self, shape: LinearShape, device: torch.device, dtype: torch.dtype) -> str | None:
        if dtype != torch.bfloat16:
            return f"PyTorch's product takes bfloat16 only, not {str(dtype).removeprefix('torch.')}"
        return refuse_widths(shape, device)

    def multiply(self, x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
        if not 0 < len(x) <= FEW_ROWS:
            return multiply_panels(x, weight, weight_scale, bias)
        y = torch.ops.aten._weight_int8pack_mm(x.contiguous(), weight, weight_scale[:, 0].to(x.dtype))
        return y if bias is None else y + bias


@dataclass(frozen=True)
class Int8PanelsKernel:
    """Scheme "int8" anywhere, by dequantized panels."""

    def refusal(self, shape: LinearShape, device: torch.device, dtype: torch.dtype) -> str | None:
        return None

    def multiply(self, x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
        return multiply_panels(x, weight, weight_scale, bias)


@dataclass(frozen=True)
class W8A8TorchKernel:
    """Scheme "w8a8" anywhere, with PyTorch's integer product."""

    def refusal(self, shape: LinearShape, device: torch.device, dtype: torch.dtype) -> str | None:
        return None

    def multiply(self, x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
        return multiply_int8(*quantize_rows(x.float()), weight, weight_scale, bias).to(x.dtype)
