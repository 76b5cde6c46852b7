"""W4A16 for thousands of tokens: dequantize a panel of the weight, multiply it with cuBLAS, panel after panel.

A small panel may be read back from the L2 cache; a large one loses less time in cuBLAS's last, partly filled wave of
tiles. Which size is faster is measured for each shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from vila_quant.kernels.cuda.w4a16.dequantize_kernel import UNITS, dequantize_kernel
from vila_quant.kernels.cuda.w4a16.layout import UNIT_INPUTS, UNIT_OUTPUTS


@dataclass(frozen=True)
class PanelConfig:
    """Rows of a panel, a multiple of 32."""

    rows: int = 4224


def multiply_panels(
    x: Tensor, packed: Tensor, bias: Tensor | None, y: Tensor, group_size: int, config: PanelConfig
) -> None:
    """Write `x Wᵀ + bias` to `y`.

    Args:
        x: `[M, units · 128]` fp16 or bf16.
        packed: the packed weight.
        bias: `[N]` in the dtype of `x`, or None.
        y: `[M, N]`.
        group_size: of the weight.
        config: the size of a panel.
    """
    outputs = y.shape[1]
    step = min(config.rows // UNIT_OUTPUTS, packed.shape[0])
    panel = x.new_empty(step * UNIT_OUTPUTS, x.shape[1])
    for first in range(0, packed.shape[0], step):
        start = first * UNIT_OUTPUTS
        end = min(start + config.rows, outputs)
        w = dequantize(packed[first : first + step], group_size, panel)[: end - start]
        if bias is None:
            torch.mm(x, w.T, out=y[:, start:end])
        else:
            torch.addmm(bias[start:end], x, w.T, out=y[:, start:end])


def dequantize(packed: Tensor, group_size: int, out: Tensor, *, inline: bool = True) -> Tensor:
    """Write a weight to the first rows of `out [·, units · 128]` in its dtype, and return those rows."""
    blocks, units, _ = packed.shape
    assert out.shape[0] >= blocks * UNIT_OUTPUTS
    assert out.shape[1] == units * UNIT_INPUTS
    assert out.is_contiguous()
    dequantize_kernel[(triton.cdiv(units, UNITS), blocks)](
        packed, out.view(torch.int32), units, out.stride(0) // 2, IS_FP16=out.dtype == torch.float16,
        GROUPS=UNIT_INPUTS // group_size, UNITS_OF_BLOCK=UNITS, INLINE=inline,
        num_warps=4,  # pyright: ignore[reportCallIssue]
    )  # fmt: skip
    return out[: blocks * UNIT_OUTPUTS]
