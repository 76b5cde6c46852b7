"""Products with fp8 (e4m3) weights, one scale per output; activations are quantized to e4m3, one scale per row.

M rows, N outputs, K inputs

    y = (x_q qᵀ) · x_scale · scale + bias,   x_scale = max|x| / 448 of each row

GPUs with fp8 units (Ada, Hopper and later) use `torch._scaled_mm`. Elsewhere both sides are dequantized, which saves
memory but no time.
"""

# PyTorch has no public names for these products.
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vila_quant.kernels.int8 import SMALLEST_RANGE as SMALLEST_RANGE
from vila_quant.kernels.kernel import LinearShape, Unavailable

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max

SIZE_MULTIPLE = 16
"""`torch._scaled_mm` takes weights whose sizes are multiples of it."""


def refuse_fp8(shape: LinearShape, device: torch.device) -> str | None:
    """Return why `torch._scaled_mm` cannot multiply e4m3 weights of this shape on `device`; None if it can."""
    if device.type != "cuda" or torch.version.hip:
        return f"it runs on an NVIDIA GPU, not on {'ROCm' if device.type == 'cuda' else device.type}"
    if torch.cuda.get_device_capability(device) < (8, 9):
        name = torch.cuda.get_device_name(device)
        return Unavailable(f"{name} does not multiply fp8 (sm89 or later does); use --vision int8")
    if shape.outputs % SIZE_MULTIPLE or shape.inputs % SIZE_MULTIPLE:
        sizes = f"{shape.outputs} outputs and {shape.inputs} inputs"
        return Unavailable(f"it takes multiples of {SIZE_MULTIPLE}, not {sizes}; use --vision int8")
    return None


def quantize_rows_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize each row to e4m3, its largest magnitude to 448.

    `x [M, K]` -> `[M, K]` e4m3, and scales `[M, 1]` in the dtype of `x`.
    """
    scale = x.abs().amax(dim=-1, keepdim=True).clamp(min=SMALLEST_RANGE) / LARGEST
    return (x / scale).clamp(-LARGEST, LARGEST).to(FP8), scale


def multiply_fp8(x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """`x [M, K]` and `weight [N, K]` e4m3, scales `[M, 1]` and `[N, 1]` float32, `bias [N]` -> `[M, N]`.

    The product leaves the tensor cores in bfloat16; a bfloat16 bias is added before that rounding.
    """
    inside = bias if bias is not None and bias.dtype == torch.bfloat16 else None
    y = torch._scaled_mm(
        x, weight.T, x_scale, weight_scale.T, bias=inside, out_dtype=torch.bfloat16, use_fast_accum=True
    )
    return y if bias is None or inside is not None else y + bias.float()


def multiply_fp8_reference(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None
) -> Tensor:
    """Multiply in float32 on any device: the reference for `multiply_fp8`."""
    y = F.linear(x.float(), weight.float()) * weight_scale.T * x_scale
    return y if bias is None else y + bias.float()


@dataclass(frozen=True)
class Fp8TorchKernel:
    """Scheme "fp8" on GPUs with fp8 units, rows quantized by PyTorch."""

    def refusal(self, shape: LinearShape, device: torch.device, dtype: torch.dtype) -> str | None:
        return refuse_fp8(shape, device)

    def multiply(self, x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
        return multiply_fp8(*quantize_rows_fp8(x.float()), weight, weight_scale, bias).to(x.dtype)


@dataclass(frozen=True)
class Fp8DequantizeKernel:
    """Scheme "fp8" anywhere, dequantized to float32."""

    def refusal(self, shape: LinearShape, device: torch.device, dtype: torch.dtype) -> str | None:
        return None

    def multiply(self, x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
        return multiply_fp8_reference(*quantize_rows_fp8(x.float()), weight, weight_scale, bias).to(x.dtype)
