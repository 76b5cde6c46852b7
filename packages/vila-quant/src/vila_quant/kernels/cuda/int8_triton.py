"""The product of int8 activations and int8 weights on a GPU, scaled in registers (reference: `int8.multiply_int8`).

M rows, N outputs, K inputs

    y = (x qᵀ) · weight_scale · x_scale + bias

Layouts: x `[M, K]` and weight `[N, K]` int8 row-major, scales `[M]` and `[N]` float32, y `[M, N]` row-major. Grid:
tiles of y; tiles that share weights are adjacent, `GROUP` rows of tiles at a time, so that their inputs stay in L2.
Hopper's copy engine loads whole tiles; elsewhere, and for rows that are not a multiple of 16 bytes, threads load them.
"""

# Triton has no types: a kernel's arguments and its launch are not checked. Compile-time constants are in capitals.
# ruff: noqa: N803
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

GROUP = 8
COPY_ENGINE = (9, 0)
"""The compute capability with a copy engine and shared memory for the larger tiles."""

ROW_BYTES = 16


@dataclass(frozen=True)
class Tile:
    """Sizes of a tile, and how its program runs."""

    rows: int
    outputs: int
    inputs: int
    warps: int
    stages: int


SMALL = Tile(128, 128, 128, 8, 3)
"""Three stages take 96 KB, the shared memory of an RTX card per program."""


def choose_tile(rows: int, outputs: int, inputs: int, *, copy_engine: bool) -> Tile:
    """Return the tile for a product: the fastest of seven for the shapes of SigLIP-SO400M on an H200."""
    if not copy_engine:
        return SMALL
    if inputs > 2048:
        return Tile(128, 256, 128, 8, 4) if rows >= 4096 else Tile(128, 128, 128, 8, 4)
    return Tile(128, 256, 128, 8, 3) if rows >= 4096 and outputs >= 2048 else Tile(64, 128, 128, 4, 4)


@triton.jit
def _place_of_tile(rows, outputs, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, GROUP: tl.constexpr):
    """Return the first row and the first output of this program's tile."""
    across, down = tl.cdiv(outputs, OUTPUTS), tl.cdiv(rows, ROWS)
    program = tl.program_id(0)
    first = program // (GROUP * across) * GROUP
    height = min(down - first, GROUP)
    return (first + program % (GROUP * across) % height) * ROWS, program % (GROUP * across) // height * OUTPUTS


@triton.jit
def scaled_product_kernel(
    x, weight, x_scale_pointer, weight_scale_pointer, bias_pointer, y_pointer, rows, outputs, inputs,
    HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, GROUP: tl.constexpr,
    COPY_ENGINE: tl.constexpr,
):  # fmt: skip
    """See the module. With COPY_ENGINE, `x` and `weight` are tensor descriptors; else pointers."""
    first_row, first_output = _place_of_tile(rows, outputs, ROWS, OUTPUTS, GROUP)
    row = first_row + tl.arange(0, ROWS)
    output = first_output + tl.arange(0, OUTPUTS)
    total = tl.zeros((ROWS, OUTPUTS), tl.int32)
    if COPY_ENGINE:
        for start in range(0, inputs, INPUTS):
            a = x.load([first_row, start])
            b = weight.load([first_output, start])
            total = tl.dot(a, b.T, total, out_dtype=tl.int32)
    else:
        inside = tl.arange(0, INPUTS)
        # Tiles that reach over an edge read a row again; their results are not stored.
        x_line = x + (row % rows).to(tl.int64)[:, None] * inputs
        weight_line = weight + (output % outputs).to(tl.int64)[None, :] * inputs
        for start in range(0, inputs, INPUTS):
            k = start + inside
            a = tl.load(x_line + k[None, :], mask=(k < inputs)[None, :], other=0)
            b = tl.load(weight_line + k[:, None], mask=(k < inputs)[:, None], other=0)
            total = tl.dot(a, b, total, out_dtype=tl.int32)
    y = total.to(tl.float32) * tl.load(weight_scale_pointer + output % outputs)[None, :]
    y *= tl.load(x_scale_pointer + row % rows)[:, None]
    if HAS_BIAS:
        y += tl.load(bias_pointer + output % outputs).to(tl.float32)[None, :]
    place = y_pointer + row.to(tl.int64)[:, None] * outputs + output[None, :]
    tl.store(place, y.to(y_pointer.dtype.element_ty), mask=(row < rows)[:, None] & (output < outputs)[None, :])


@torch.library.custom_op("vila::multiply_int8", mutates_args=())
def _multiply_int8(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    (rows, inputs), outputs = x.shape, weight.shape[0]
    y = x.new_empty(rows, outputs, dtype=dtype)
    if not rows:
        return y
    has_engine = x.is_cuda and COPY_ENGINE <= torch.cuda.get_device_capability(x.device) < (12, 0)
    copy_engine = has_engine and inputs % ROW_BYTES == 0
    tile = choose_tile(rows, outputs, inputs, copy_engine=copy_engine)
    left: Tensor | TensorDescriptor = x
    right: Tensor | TensorDescriptor = weight
    if copy_engine:
        left = TensorDescriptor.from_tensor(x, [tile.rows, tile.inputs])
        right = TensorDescriptor.from_tensor(weight, [tile.outputs, tile.inputs])
    scaled_product_kernel[(triton.cdiv(rows, tile.rows) * triton.cdiv(outputs, tile.outputs),)](
        left, right, x_scale, weight_scale, weight_scale if bias is None else bias, y, rows, outputs, inputs,
        HAS_BIAS=bias is not None, ROWS=tile.rows, OUTPUTS=tile.outputs, INPUTS=tile.inputs, GROUP=GROUP,
        COPY_ENGINE=copy_engine, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return y


@_multiply_int8.register_fake
def _(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    del x_scale, weight_scale, bias
    return x.new_empty(x.shape[0], weight.shape[0], dtype=dtype)


def multiply_int8(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """`x [M, K]` int8, `x_scale [M, 1]`, `weight [N, K]` int8, `weight_scale [N, 1]` -> `[M, N]` in `dtype`."""
    return torch.ops.vila.multiply_int8(x.contiguous(), x_scale, weight, weight_scale, bias, dtype)
