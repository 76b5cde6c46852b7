"""Keys and values in 8 bits: e4m3 numbers (OCP 8-bit floating point specification, 2023) and a scale for each head.

D_h head width

    x ≈ code · scale        scale: the smallest power of two with max|x| ≤ 448 · scale

A power of two changes no digit of a number, so what is quantized, read and quantized again stays the same (in fp16, of
heads whose largest magnitude is at least 2^-7).
"""

from __future__ import annotations

import torch
from torch import Tensor

from vila_core.ops.support import refusal

SCALE_BYTES = 2
"""A scale is a bfloat16, which holds every power of two."""
SMALLEST_EXPONENT = 1
"""Biased exponent of the smallest scale, 2^-126: the smallest number of which every float32 unit keeps all digits."""


def quantize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`x [..., D_h]` of any floating dtype -> codes, scales `[...]` bfloat16, and what they stand for, in x's dtype.

    Codes are uint8 `[..., D_h]`. Numbers that are not finite become 0.
    """
    if x.dim() == 4 and refusal(x.device, x.dtype) is None:
        from vila_core.ops.eight_bits_kernel import quantize_heads  # needs Triton

        return quantize_heads(x)
    finite = x.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).float()
    bits = finite.abs().amax(-1).view(torch.int32)
    # 448 is 1.75 · 2^8: the exponent is one more if the mantissa exceeds 1.75.
    exponent = (((bits + 0x1FFFFF) >> 23) - 8).clamp(min=SMALLEST_EXPONENT)
    scales = (exponent << 23).view(torch.float32)
    codes = (finite / scales[..., None]).to(torch.float8_e4m3fn).view(torch.uint8)
    scales = scales.bfloat16()
    return codes, scales, dequantize(codes, scales, x.dtype)


def dequantize(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `[..., D_h]` of uint8 codes and their scales `[...]`, in `dtype`."""
    numbers = codes.view(torch.float8_e4m3fn).float() * scales.float()[..., None]
    largest = min(torch.finfo(dtype).max, torch.finfo(torch.float32).max)  # the largest numbers are rounded up
    return numbers.clamp(-largest, largest).to(dtype)
