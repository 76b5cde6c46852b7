"""Layer norm, activation and quantization of rows in one pass over memory (reference: `reference.rows`).

M rows, D columns

    h = x + added,    t = act(norm(h + shift)),    y = t, or quantized:  scale = max|t| / largest,  y = t / scale

A row stays in registers, as a power of two and a rest. Layouts: x, added, h and y `[M, D]` row-major, shift and the
norm's weight and bias `[D]`, scales `[M]`. Grid: (M,).
"""

# Triton has no types: a kernel's arguments and its launch are not checked. Compile-time constants are in capitals.
# ruff: noqa: N803
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportArgumentType=false, reportIndexIssue=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from vila_core.ops.row_settings import ACTIVATIONS, LayerNorm, RowFormat
from vila_core.ops.support import launches_early


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp2(x * -1.4426950408889634))  # log2(e)


@triton.jit
def activated(x, ACT: tl.constexpr):
    """Return the activation `ACT` of `x`, see `ACTIVATIONS`."""
    if ACT == "gelu_pytorch_tanh":
        # 0.5 (1 + tanh(u)) = sigmoid(2u)
        return x * _sigmoid(x * (1.5957691216057308 + 0.07135481282052 * x * x))
    elif ACT == "gelu":
        return 0.5 * x * (1.0 + tl.math.erf(x * 0.7071067811865476))
    elif ACT == "quick_gelu":
        return x * _sigmoid(1.702 * x)
    elif ACT == "silu":
        return x * _sigmoid(x)
    elif ACT == "relu":
        return tl.where(x < 0.0, 0.0, x)
    else:
        return x


@triton.jit
def _loaded(
    x_pointer, added_pointer, h_pointer, shift_pointer, row, column, width, ADD: tl.constexpr, SHIFT: tl.constexpr
):
    """Return one part of the row in fp32, zeros past its end; with ADD, store the sum."""
    mask = column < width
    x = tl.load(x_pointer + row * width + column, mask=mask, other=0.0)
    if ADD:
        added = tl.load(added_pointer + row * width + column, mask=mask, other=0.0)
        x = (x.to(tl.float32) + added.to(tl.float32)).to(x.dtype)
        tl.store(h_pointer + row * width + column, x, mask=mask)
    x = x.to(tl.float32)
    if SHIFT:
        x += tl.load(shift_pointer + column, mask=mask, other=0.0).to(tl.float32)
    return x


@triton.jit
def _stored(
    t, y_pointer, row, column, width, scale, largest, QUANTIZE: tl.constexpr, ROUND: tl.constexpr, EXACT: tl.constexpr
):
    """Store one part of the row."""
    if QUANTIZE:
        if EXACT:
            t = tl.div_rn(t, scale)
        else:
            t = t * (1.0 / scale)
        if ROUND:
            # Adding and subtracting 1.5 · 2^23 rounds to nearest, ties to even.
            t = (t + 12582912.0) - 12582912.0
        t = tl.minimum(tl.maximum(t, -largest), largest)
    tl.store(y_pointer + row * width + column, t.to(y_pointer.dtype.element_ty), mask=column < width)


@triton.jit
def rows_kernel(
    x_pointer, added_pointer, h_pointer, shift_pointer, weight_pointer, bias_pointer, y_pointer, scales_pointer,
    width, eps, largest, smallest_range,
    ADD: tl.constexpr, SHIFT: tl.constexpr, NORM: tl.constexpr, ACT: tl.constexpr, QUANTIZE: tl.constexpr,
    ROUND: tl.constexpr, EXACT: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """See the module. The row is `MAIN` columns, then up to `REST` more."""
    row = tl.program_id(0).to(tl.int64)
    first = tl.arange(0, MAIN)
    second = MAIN + tl.arange(0, REST)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    a = _loaded(x_pointer, added_pointer, h_pointer, shift_pointer, row, first, width, ADD, SHIFT)
    b = _loaded(x_pointer, added_pointer, h_pointer, shift_pointer, row, second, width, ADD, SHIFT)
    if NORM:
        inside, rest = first < width, second < width
        mean = (tl.sum(a, 0) + tl.sum(b, 0)) / width
        a = tl.where(inside, a - mean, 0.0)
        b = tl.where(rest, b - mean, 0.0)
        inverse = tl.rsqrt((tl.sum(a * a, 0) + tl.sum(b * b, 0)) / width + eps)
        a = a * inverse * tl.load(weight_pointer + first, mask=inside, other=0.0).to(tl.float32)
        b = b * inverse * tl.load(weight_pointer + second, mask=rest, other=0.0).to(tl.float32)
        a += tl.load(bias_pointer + first, mask=inside, other=0.0).to(tl.float32)
        b += tl.load(bias_pointer + second, mask=rest, other=0.0).to(tl.float32)
    a = activated(a, ACT)
    b = activated(b, ACT)
    scale = 1.0
    if QUANTIZE:
        range_of_row = tl.maximum(tl.max(tl.abs(a), 0), tl.max(tl.abs(b), 0))
        scale = tl.div_rn(tl.maximum(range_of_row, smallest_range), largest)
        is_bad = tl.max((a != a).to(tl.int32), 0) + tl.max((b != b).to(tl.int32), 0)  # a maximum ignores NaN
        scale = tl.where(is_bad > 0, float("nan"), scale)
        tl.store(scales_pointer + row, scale)
    _stored(a, y_pointer, row, first, width, scale, largest, QUANTIZE, ROUND, EXACT)
    _stored(b, y_pointer, row, second, width, scale, largest, QUANTIZE, ROUND, EXACT)


def parts_of_row(width: int) -> tuple[int, int]:
    """Return the sizes of both parts of a row, each a power of two."""
    main = max(16, 1 << (width.bit_length() - 1))
    return main, max(16, 1 << (max(width - main, 1) - 1).bit_length())


FEW_ROWS = 64


def warps_for(rows: int, width: int) -> int:
    """Return the number of warps per row, a power of two.

    Of many rows one for a tower's width was fastest, four for its MLP's; few do not fill the GPU.
    """
    if rows <= FEW_ROWS:
        return 8
    return min(8, 1 << (max(1, width // 1024).bit_length() - 1))


@torch.library.custom_op("vila::rows", mutates_args=())
def _rows(
    x: Tensor,
    added: Tensor | None,
    shift: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    act: str,
    dtype: torch.dtype | None,
    largest: float,
    smallest_range: float,
) -> tuple[Tensor, Tensor, Tensor]:
    rows, width = x.shape
    y = x.new_empty(rows, width, dtype=dtype)
    scales = x.new_empty(0 if dtype is None else rows, 1, dtype=torch.float32)
    h = x.new_empty(0 if added is None else rows, width)
    main, rest = parts_of_row(width)
    pdl = launches_early(x.device)
    if rows:
        rows_kernel[(rows,)](
            x, x if added is None else added, h, x if shift is None else shift, x if weight is None else weight,
            x if bias is None else bias, y, scales, width, eps, largest, smallest_range, ADD=added is not None,
            SHIFT=shift is not None, NORM=weight is not None, ACT=act, QUANTIZE=dtype is not None,
            ROUND=dtype == torch.int8, EXACT=weight is None and not act, MAIN=main, REST=rest, PDL=pdl,
            num_warps=warps_for(rows, width), **({"launch_pdl": True} if pdl else {}),
        )  # fmt: skip
    return y, scales, h


@_rows.register_fake
def _(
    x: Tensor,
    added: Tensor | None,
    shift: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    act: str,
    dtype: torch.dtype | None,
    largest: float,
    smallest_range: float,
) -> tuple[Tensor, Tensor, Tensor]:
    del shift, weight, bias, eps, act, largest, smallest_range
    return (
        x.new_empty(x.shape, dtype=dtype),
        x.new_empty(0 if dtype is None else x.shape[0], 1, dtype=torch.float32),
        x.new_empty(0 if added is None else x.shape[0], x.shape[1]),
    )


def process_rows(
    x: Tensor,
    *,
    added: Tensor | None = None,
    shift: Tensor | None = None,
    norm: LayerNorm | None = None,
    act: str = "",
    quantize: RowFormat | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return `y`, its scales and `h` (see the module).

    Args:
        x: `[M, D]` contiguous, any floating dtype.
        added: `[M, D]` contiguous, same dtype; the sum is rounded to it. None adds nothing, and then h is x.
        shift: `[D]`, added in fp32 before the norm; h does not contain it.
        norm: a layer norm.
        act: one of `ACTIVATIONS`.
        quantize: the format of y; None leaves it in the dtype of x.

    Returns:
        y `[M, D]`; scales `[M, 1]` float32, None unless quantized; h `[M, D]`. A row that is not finite gets a scale
        that is not finite.
    """
    assert x.is_contiguous()
    assert added is None or (added.is_contiguous() and added.shape == x.shape and added.dtype == x.dtype)
    assert act in ACTIVATIONS
    y, scales, h = torch.ops.vila.rows(
        x,
        added,
        shift,
        None if norm is None else norm.weight,
        None if norm is None else norm.bias,
        0.0 if norm is None else norm.eps,
        act,
        None if quantize is None else quantize.dtype,
        1.0 if quantize is None else quantize.largest,
        0.0 if quantize is None else quantize.smallest_range,
    )
    return y, None if quantize is None else scales, x if added is None else h
