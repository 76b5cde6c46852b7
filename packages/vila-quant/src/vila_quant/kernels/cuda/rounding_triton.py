"""Error-compensated rounding of one block of columns on a GPU (reference: `round_block_torch` in `rounding.py`).

N rows, b columns of the block (at most 128)

Each program processes some rows, column by column, in registers:

    q_k = clamp(round(t_k / s_k) + z_k),   e_k = w_k - (q_k - z_k) s_k,   t_j += e_k U_kj for j > k

Layouts: weight, wanted, scales, zeros, q and errors `[N, b]` row-major, upper `[b, b]` row-major. Grid: (N / ROWS,).
"""

# Triton has no types: a kernel's arguments and its launch are not checked.
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false, reportOperatorIssue=false, reportCallIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 16
"""Rows per program: enough programs for a large GPU at 3,584 rows, with few registers."""


@triton.jit
def _round_block_kernel(
    weight_pointer,
    wanted_pointer,
    upper_pointer,
    scales_pointer,
    zeros_pointer,
    q_pointer,
    errors_pointer,
    rows,
    columns,
    largest,
    ROWS: tl.constexpr,  # noqa: N803 - a constant
    COLUMNS: tl.constexpr,  # noqa: N803
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    offsets = row[:, None] * columns + column[None, :]
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    weight = tl.load(weight_pointer + offsets, mask=mask, other=0.0)
    target = tl.load(wanted_pointer + offsets, mask=mask, other=0.0)
    scales = tl.load(scales_pointer + offsets, mask=mask, other=1.0)
    zeros = tl.load(zeros_pointer + offsets, mask=mask, other=0.0)
    q = tl.zeros((ROWS, COLUMNS), tl.float32)
    errors = tl.zeros((ROWS, COLUMNS), tl.float32)
    for k in range(columns):
        own = (column == k)[None, :]
        t = tl.sum(tl.where(own, target, 0.0), axis=1)
        w = tl.sum(tl.where(own, weight, 0.0), axis=1)
        s = tl.sum(tl.where(own, scales, 0.0), axis=1)
        z = tl.sum(tl.where(own, zeros, 0.0), axis=1)
        # Adding and subtracting 1.5 · 2^23 rounds to nearest, ties to even; the bounds prevent an overflow.
        level = tl.minimum(tl.maximum(t / s, -65536.0), 65536.0)
        rounded = (level + 12582912.0) - 12582912.0
        value = tl.minimum(tl.maximum(rounded + z, 0.0), largest)
        error = w - (value - z) * s
        later = (column > k) & (column < columns)
        feedback = tl.load(upper_pointer + k * columns + column, mask=later, other=0.0)
        target += error[:, None] * feedback[None, :]
        q = tl.where(own, value[:, None], q)
        errors = tl.where(own, error[:, None], errors)
    tl.store(q_pointer + offsets, q.to(tl.uint8), mask=mask)
    tl.store(errors_pointer + offsets, errors, mask=mask)


def round_block(
    weight: Tensor, wanted: Tensor, upper: Tensor, scales: Tensor, zeros: Tensor, largest: int
) -> tuple[Tensor, Tensor]:
    """Round one block of columns; arguments and result are those of `round_block_torch`."""
    rows, columns = weight.shape
    assert columns <= 128, f"a block has at most 128 columns, got {columns}"
    assert upper.shape == (columns, columns), f"upper is {list(upper.shape)}"
    assert wanted.shape == scales.shape == zeros.shape == weight.shape, "one value for each weight"
    parts = [part.float().contiguous() for part in (weight, wanted, upper, scales, zeros)]
    q = torch.empty(rows, columns, dtype=torch.uint8, device=weight.device)
    errors = torch.empty(rows, columns, dtype=torch.float32, device=weight.device)
    _round_block_kernel[(triton.cdiv(rows, ROWS),)](
        *parts,
        q,
        errors,
        rows,
        columns,
        float(largest),
        ROWS=ROWS,
        COLUMNS=triton.next_power_of_2(columns),
        num_warps=4,
    )
    return q, errors
