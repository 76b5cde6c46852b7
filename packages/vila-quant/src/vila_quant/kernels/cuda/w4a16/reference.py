"""The oracle of the W4A16 kernels, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from vila_quant.kernels.cuda.w4a16.layout import W4Weight


def dequantize(weight: W4Weight, dtype: torch.dtype) -> Tensor:
    """Return `(q - zero) · scale`, `[N, K]`, computed in `dtype`."""
    codes, scales, zeros = weight.unpack()
    outputs, inputs = codes.shape
    grouped = codes.view(outputs, -1, weight.group_size).to(dtype)
    return ((grouped - zeros[..., None].to(dtype)) * scales[..., None].to(dtype)).view(outputs, inputs)


def matmul(x: Tensor, weight: W4Weight, bias: Tensor | None = None) -> Tensor:
    """`x [M, K] -> x Wᵀ + bias [M, N]` in float64."""
    y = x.double() @ dequantize(weight, torch.float64).T
    return y if bias is None else y + bias.double()
