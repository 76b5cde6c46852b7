"""Quantize rows of activations to int8 or fp8 on a GPU (references: `int8.quantize_rows`, `fp8.quantize_rows_fp8`).

M rows, K columns

Each program reads its row twice: `scale = max|x| / largest`, `q = x / scale`.

Layouts: x and q `[M, K]` row-major, scales `[M]`. Grid: (M,).
"""

# Triton has no types: a kernel's arguments and its launch are not checked.
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS = 512
"""Columns read at a time: whole rows of a tower's second MLP layer in registers take 2.5 times as long."""


@triton.jit
def _quantize_rows_kernel(
    x_pointer,
    q_pointer,
    scales_pointer,
    columns,
    largest,
    smallest_range,
    COLUMNS: tl.constexpr,  # noqa: N803 - a constant
    ROUND: tl.constexpr,  # noqa: N803
):
    row = tl.program_id(0).to(tl.int64)
    inside = tl.arange(0, COLUMNS)
    range_of_column = tl.full((COLUMNS,), smallest_range, tl.float32)
    is_bad = tl.zeros((COLUMNS,), tl.int32)
    for start in range(0, columns, COLUMNS):
        column = start + inside
        x = tl.load(x_pointer + row * columns + column, mask=column < columns, other=0.0).to(tl.float32)
        range_of_column = tl.maximum(range_of_column, tl.abs(x))
        is_bad |= (x != x).to(tl.int32)  # the maximum ignores NaN
    scale = tl.div_rn(tl.max(range_of_column, axis=0), largest)
    scale = tl.where(tl.max(is_bad, axis=0) > 0, float("nan"), scale)
    tl.store(scales_pointer + row, scale)
    for start in range(0, columns, COLUMNS):
        column = start + inside
        x = tl.load(x_pointer + row * columns + column, mask=column < columns, other=0.0).to(tl.float32)
        q = tl.div_rn(x, scale)
        if ROUND:
            # Adding and subtracting 1.5 · 2^23 rounds to nearest, ties to even.
            q = (q + 12582912.0) - 12582912.0
        q = tl.minimum(tl.maximum(q, -largest), largest)
        tl.store(q_pointer + row * columns + column, q.to(q_pointer.dtype.element_ty), mask=column < columns)


def quantize_rows(x: Tensor, dtype: torch.dtype, largest: float, smallest_range: float) -> tuple[Tensor, Tensor]:
    """`x [M, K]`, any floating dtype -> `[M, K]` int8 or e4m3, and scales `[M, 1]` float32.

    The largest magnitude of a row, at least `smallest_range`, maps to `largest`. A row that is not finite gets a
    scale that is not finite either.
    """
    rows, columns = x.shape
    q = torch.empty(rows, columns, dtype=dtype, device=x.device)
    scales = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    if rows:
        _quantize_rows_kernel[(rows,)](
            x.contiguous(),
            q,
            scales,
            columns,
            float(largest),
            smallest_range,
            COLUMNS=COLUMNS,
            ROUND=dtype == torch.int8,
            num_warps=2,
        )
    return q, scales
