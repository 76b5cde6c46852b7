"""Linear layers with eight-bit weights, symmetric, one scale an output.

M rows, N outputs, K inputs

    y = x (q · scale)ᵀ + bias,    q int8 in -127 … 127

Weight-only layers (an lm_head) keep activations as they are. Layers of a vision tower also quantize them, token by token, so that the
product is one of integers:

    x ≈ x_q · x_scale,   x_scale = max|x| / 127 of each row,   y = (x_q qᵀ) · scale · x_scale + bias
"""

# PyTorch has no public names for these products.
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vila_quant.kernels.cpu.pages import large_pages

PANEL_ELEMENTS = 1 << 24
"""Weights that are dequantized at once: 32 MB of bf16, where the whole lm_head of an 8B model would be 1 GB."""

FEW_ROWS = 4
"""Up to as many rows PyTorch's int8 product on a CPU, which reads a byte a weight, beats dequantized panels."""

LARGEST = 127
"""The codes are symmetric: -128 is not used."""

SMALLEST_RANGE = 1e-5
"""A row of zeros gets the scale of this magnitude, so that nothing is divided by zero (as in llm-awq)."""

EXACT_COLUMNS = 1024
"""Products of int8 (at most 127²) whose sum float32 holds exactly, below 2²⁴."""

WHOLE_VECTORS = 64
"""PyTorch's int8 product reads past the end of rows that are not whole vectors, and does not check: other widths take panels."""


class Int8Linear(nn.Module):
    """`y = x Wᵀ + b` with W in int8; its names in a state dict are those of the file.

    Args:
        outputs: N.
        inputs: K.
        bias: whether there is one.
        quantize_activations: whether a row of x is cut to int8 too (dynamically, by its own largest value).
    """

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, outputs: int, inputs: int, *, bias: bool, quantize_activations: bool):
        super().__init__()
        self.quantize_activations = quantize_activations
        self.register_buffer("weight", torch.zeros(outputs, inputs, dtype=torch.int8))
        # The loader casts what is declared as float32 to the model's dtype; double passes, and `reset_buffers` makes it float32.
        self.register_buffer("weight_scale", torch.ones(outputs, 1, dtype=torch.float64))
        self.bias = nn.Parameter(torch.zeros(outputs), requires_grad=False) if bias else None

    def reset_buffers(self, device: torch.device, dtype: torch.dtype) -> None:
        """Bring the scales to float32, and a head's weight to where a CPU reads it fast."""
        if device.type == "cpu" and not self.quantize_activations:
            self.weight = large_pages(self.weight.shape, torch.int8).copy_(self.weight)
        self.weight_scale = self.weight_scale.to(device, torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        """`x [..., K]` -> `[..., N]` in the dtype of `x`."""
        rows = x.reshape(-1, x.shape[-1])
        if self.quantize_activations:
            multiply = (_product_of_triton() if rows.is_cuda else None) or _quantize_and_multiply
            return multiply(rows, self.weight, self.weight_scale, self.bias).view(*x.shape[:-1], -1)
        y = multiply_weight_only(rows, self.weight, self.weight_scale[:, 0])
        y = y.view(*x.shape[:-1], y.shape[-1])
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        outputs, inputs = self.weight.shape
        return f"in={inputs}, out={outputs}, activations={'int8' if self.quantize_activations else 'as they are'}"


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Cut each row to integers by its own largest magnitude, computing in the dtype of `x` (in float16 as llm-awq does, bit for bit).

    `x [M, K]`, any floating dtype -> codes `[M, K]` int8 and scales `[M, 1]` in the dtype of `x`.
    """
    scale = x.abs().amax(dim=-1, keepdim=True).clamp(min=SMALLEST_RANGE) / LARGEST
    return torch.round(x / scale).to(torch.int8), scale


def _quantize_and_multiply(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """`x [M, K]`, `weight [N, K]` int8, `weight_scale [N, 1]`, `bias [N]` -> `[M, N]` in the dtype of `x`."""
    return multiply_int8(*quantize_rows(x.float()), weight, weight_scale, bias).to(x.dtype)


@cache
def _product_of_triton() -> Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor] | None:
    """Return the same in two kernels on a GPU, where Triton is installed."""
    try:
        from vila_quant.kernels.cuda import int8_triton, rows_triton
    except ImportError:
        return None

    def multiply(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
        q, scale = rows_triton.quantize_rows(x, torch.int8, LARGEST, SMALLEST_RANGE)
        return int8_triton.multiply_int8(q, scale, weight, weight_scale, bias, x.dtype)

    return multiply


def multiply_int8(x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply codes exactly, and scale the sums in float32.

    `x [M, K]` int8, `x_scale [M, 1]`, `weight [N, K]` int8, `weight_scale [N, 1]`, `bias [N]` -> `[M, N]` float32.
    """
    y = integer_product(x, weight).float() * weight_scale.T.float() * x_scale.float()
    return y if bias is None else y + bias.float()


def integer_product(x: Tensor, weight: Tensor) -> Tensor:
    """`x [M, K]` int8, `weight [N, K]` int8 -> `x weightᵀ [M, N]`, exact, int32.

    `torch._int_mm` where there are instructions for it. Elsewhere it is a scalar loop, and slices of K whose sums float32 holds exactly
    are multiplied instead.
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
    """In the form that cuBLAS takes: more than 16 rows, and multiples of 8 for the rest: zeros are added and cut off."""
    (rows, columns), outputs = x.shape, weight.shape[0]
    more_rows, more_columns, more_outputs = max(0, 32 - rows), -columns % 8, -outputs % 8
    x = F.pad(x, (0, more_columns, 0, more_rows)) if more_rows or more_columns else x
    weight = F.pad(weight, (0, more_columns, 0, more_outputs)) if more_outputs or more_columns else weight
    return torch._int_mm(x, weight.T)[:rows, :outputs]


def multiply_weight_only(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """`x [M, K]`, `weight [N, K]` int8, `scale [N]` float32 -> `[M, N]` in the dtype of `x`."""
    few = x.device.type == "cpu" and 0 < x.shape[0] <= FEW_ROWS and weight.shape[1] % WHOLE_VECTORS == 0
    product = _compiled_product() if few else None
    if product is not None:
        return product(x, weight, scale)
    if few and x.dtype == torch.bfloat16:
        return torch.ops.aten._weight_int8pack_mm(x.contiguous(), weight, scale.to(x.dtype))
    step = max(1, PANEL_ELEMENTS // weight.shape[1])
    panels = [F.linear(x, panel.to(x.dtype)) for panel in weight.split(step)]
    return torch.cat(panels, dim=-1) * scale.to(x.dtype)


@cache
def _compiled_product() -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """Return the product that numba compiles for this CPU, where numba is installed."""
    try:
        from vila_quant.kernels.cpu.compiled.kernel import multiply_bytes
    except ImportError:
        return None
    return multiply_bytes
