"""The product of int8 activations and int8 weights on a GPU, scaled in registers (reference: `int8.multiply_int8`).

M rows, N outputs, K inputs

    y = (x qᵀ) · weight_scale · x_scale + bias

Layouts: x `[M, K]` and weight `[N, K]` int8 row-major, scales `[M]` and `[N]` float32, y `[M, N]` row-major. Grid:
    tiles
of y; tiles that share weights are adjacent, `TILES` rows of tiles at a time, so that their inputs stay in the L2 cache.
"""

# Triton has no types: a kernel's arguments and its launch are not checked.
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, OUTPUTS, INPUTS = 128, 128, 128
"""Sizes of a tile: three pipeline stages take 96 KB, the shared memory of an RTX card per program."""

TILES = 8


@triton.jit
def _scaled_product_kernel(
    x_pointer,
    weight_pointer,
    x_scale_pointer,
    weight_scale_pointer,
    bias_pointer,
    y_pointer,
    rows,
    outputs,
    inputs,
    HAS_BIAS: tl.constexpr,  # noqa: N803 - a constant
    ROWS: tl.constexpr,  # noqa: N803
    OUTPUTS: tl.constexpr,  # noqa: N803
    INPUTS: tl.constexpr,  # noqa: N803
    TILES: tl.constexpr,  # noqa: N803
):
    across, down = tl.cdiv(outputs, OUTPUTS), tl.cdiv(rows, ROWS)
    program = tl.program_id(0)
    first = program // (TILES * across) * TILES
    height = min(down - first, TILES)
    row = (first + program % (TILES * across) % height) * ROWS + tl.arange(0, ROWS)
    output = program % (TILES * across) // height * OUTPUTS + tl.arange(0, OUTPUTS)
    inside = tl.arange(0, INPUTS)
    # Tiles that reach over an edge read a row again; their results are not stored.
    x_line = x_pointer + (row % rows).to(tl.int64)[:, None] * inputs
    weight_line = weight_pointer + (output % outputs).to(tl.int64)[None, :] * inputs
    total = tl.zeros((ROWS, OUTPUTS), tl.int32)
    for start in range(0, inputs, INPUTS):
        k = start + inside
        x = tl.load(x_line + k[None, :], mask=(k < inputs)[None, :], other=0)
        weight = tl.load(weight_line + k[:, None], mask=(k < inputs)[:, None], other=0)
        total = tl.dot(x, weight, total, out_dtype=tl.int32)
    y = total.to(tl.float32) * tl.load(weight_scale_pointer + output % outputs)[None, :]
    y *= tl.load(x_scale_pointer + row % rows)[:, None]
    if HAS_BIAS:
        y += tl.load(bias_pointer + output % outputs).to(tl.float32)[None, :]
    place = y_pointer + row.to(tl.int64)[:, None] * outputs + output[None, :]
    tl.store(place, y.to(y_pointer.dtype.element_ty), mask=(row < rows)[:, None] & (output < outputs)[None, :])


def multiply_int8(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """`x [M, K]` int8, `x_scale [M, 1]`, `weight [N, K]` int8, `weight_scale [N, 1]` -> `[M, N]` in `dtype`."""
    (rows, inputs), outputs = x.shape, weight.shape[0]
    y = torch.empty(rows, outputs, dtype=dtype, device=x.device)
    if rows:
        _scaled_product_kernel[(triton.cdiv(rows, ROWS) * triton.cdiv(outputs, OUTPUTS),)](
            x.contiguous(),
            weight,
            x_scale,
            weight_scale,
            weight_scale if bias is None else bias,
            y,
            rows,
            outputs,
            inputs,
            HAS_BIAS=bias is not None,
            ROWS=ROWS,
            OUTPUTS=OUTPUTS,
            INPUTS=INPUTS,
            TILES=TILES,
            num_warps=8,
            num_stages=3,
        )
    return y
