"""Triton kernels for the operations between the matrix products of a block (formulas and references: `block_ops`).

T rows, D columns. One program per row. A row is read in parts of `BLOCK` columns; where it is quantized, its rounded
values are read again, from the cache, once its largest magnitude is known. Kernels are launched directly: a custom
operator or a compiled function takes the host three to ten times as long.
"""

# Triton has no types: a kernel's arguments and its launch are not checked. Compile-time constants are in capitals.
# ruff: noqa: N803, N806
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportArgumentType=false, reportIndexIssue=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from vila_core.ops.norm import normalized

SMALLEST_RANGE = tl.constexpr(1e-30)
"""As in `fp8`."""
BLOCK = 2048
"""Columns at a time: 8 for each of 256 threads, 16 bytes in 16 bits."""


@triton.jit
def _scale(magnitudes, scales_pointer, row, LARGEST: tl.constexpr):
    """Store the scale of a row whose largest magnitudes are given, and return its reciprocal; NaN stays NaN."""
    largest = tl.max(magnitudes, 0)  # ignores NaN
    largest = tl.where(tl.max((magnitudes != magnitudes).to(tl.int32), 0) > 0, float("nan"), largest)
    scale = tl.div_rn(tl.maximum(largest, SMALLEST_RANGE, propagate_nan=tl.PropagateNan.ALL), LARGEST)
    tl.store(scales_pointer + row, scale)
    return tl.div_rn(1.0, scale)


@triton.jit
def _larger(magnitudes, x):
    return tl.maximum(magnitudes, tl.abs(x), propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _store_codes(source_pointer, codes_pointer, width, inverse, LARGEST: tl.constexpr, BLOCK: tl.constexpr):
    """Quantize a row that this program has written or only read."""
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < width
        x = tl.load(source_pointer + column, mask=inside, other=0.0).to(tl.float32) * inverse
        x = tl.minimum(tl.maximum(x, -LARGEST), LARGEST)
        tl.store(codes_pointer + column, x.to(codes_pointer.dtype.element_ty), mask=inside)


@triton.jit
def quantize_kernel(x_pointer, codes_pointer, scales_pointer, width, LARGEST: tl.constexpr, BLOCK: tl.constexpr):
    """`fp8.quantize_rows`."""
    row = tl.program_id(0).to(tl.int64)
    magnitudes = tl.zeros([BLOCK], tl.float32)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(x_pointer + row * width + column, mask=column < width, other=0.0)
        magnitudes = _larger(magnitudes, x.to(tl.float32))
    inverse = _scale(magnitudes, scales_pointer, row, LARGEST)
    _store_codes(x_pointer + row * width, codes_pointer + row * width, width, inverse, LARGEST, BLOCK)


@triton.jit
def norm_kernel(
    x_pointer, change_pointer, weight_pointer, total_pointer, y_pointer, codes_pointer, scales_pointer, width, eps,
    ADD: tl.constexpr, QUANTIZE: tl.constexpr, LARGEST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`block_ops.add_norm`; the row fits into `BLOCK`."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    place = row * width + column
    x = tl.load(x_pointer + place, mask=inside, other=0.0)
    if ADD:
        change = tl.load(change_pointer + place, mask=inside, other=0.0)
        x = (x.to(tl.float32) + change.to(tl.float32)).to(x.dtype)
        tl.store(total_pointer + place, x, mask=inside)
    weight = tl.load(weight_pointer + column, mask=inside, other=0.0).to(tl.float32)
    y = normalized(x.to(tl.float32), weight, width, eps, x.dtype)
    tl.store(y_pointer + place, y, mask=inside)
    if QUANTIZE:
        y = y.to(tl.float32)
        y *= _scale(tl.abs(y), scales_pointer, row, LARGEST)
        y = tl.minimum(tl.maximum(y, -LARGEST), LARGEST)
        tl.store(codes_pointer + place, y.to(codes_pointer.dtype.element_ty), mask=inside)


@triton.jit
def norm_backward_kernel(
    grad_y_pointer, x_pointer, weight_pointer, added_pointer, grad_x_pointer, width, eps,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """`block_ops.norm_backward`; the row fits into `BLOCK`."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    place = row * width + column
    x = tl.load(x_pointer + place, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_pointer + column, mask=inside, other=0.0).to(tl.float32)
    grad_y = tl.load(grad_y_pointer + place, mask=inside, other=0.0).to(tl.float32) * weight
    inverse = tl.rsqrt(tl.sum(x * x, 0) / width + eps)
    x = x * inverse
    grad_x = (grad_y - x * (tl.sum(grad_y * x, 0) / width)) * inverse
    grad_x += tl.load(added_pointer + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(grad_x_pointer + place, grad_x.to(grad_x_pointer.dtype.element_ty), mask=inside)


@triton.jit
def swiglu_kernel(
    gate_pointer, up_pointer, gate_stride, up_stride, y_pointer, codes_pointer, scales_pointer, width,
    QUANTIZE: tl.constexpr, LARGEST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`block_ops.swiglu`."""
    row = tl.program_id(0).to(tl.int64)
    magnitudes = tl.zeros([BLOCK], tl.float32)
    y_row = y_pointer + row * width
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < width
        gate = tl.load(gate_pointer + row * gate_stride + column, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(up_pointer + row * up_stride + column, mask=inside, other=0.0).to(tl.float32)
        y = (gate * tl.sigmoid(gate) * up).to(y_pointer.dtype.element_ty)
        tl.store(y_row + column, y, mask=inside)
        magnitudes = _larger(magnitudes, y.to(tl.float32))
    if QUANTIZE:
        inverse = _scale(magnitudes, scales_pointer, row, LARGEST)
        tl.debug_barrier()  # what the row's threads have written is read by others
        _store_codes(y_row, codes_pointer + row * width, width, inverse, LARGEST, BLOCK)


@triton.jit
def swiglu_backward_kernel(
    grad_y_pointer, gate_pointer, up_pointer, gate_stride, up_stride, grad_joint_pointer, codes_pointer, scales_pointer,
    width, QUANTIZE: tl.constexpr, LARGEST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`block_ops.swiglu_backward`."""
    row = tl.program_id(0).to(tl.int64)
    magnitudes = tl.zeros([BLOCK], tl.float32)
    dtype: tl.constexpr = grad_joint_pointer.dtype.element_ty
    grad_row = grad_joint_pointer + row * 2 * width
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < width
        gate = tl.load(gate_pointer + row * gate_stride + column, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(up_pointer + row * up_stride + column, mask=inside, other=0.0).to(tl.float32)
        grad_y = tl.load(grad_y_pointer + row * width + column, mask=inside, other=0.0).to(tl.float32)
        sigmoid = tl.sigmoid(gate)
        grad_gate = (grad_y * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))).to(dtype)
        grad_up = (grad_y * gate * sigmoid).to(dtype)
        tl.store(grad_row + column, grad_gate, mask=inside)
        tl.store(grad_row + width + column, grad_up, mask=inside)
        magnitudes = _larger(_larger(magnitudes, grad_gate.to(tl.float32)), grad_up.to(tl.float32))
    if QUANTIZE:
        inverse = _scale(magnitudes, scales_pointer, row, LARGEST)
        tl.debug_barrier()  # what the row's threads have written is read by others
        _store_codes(grad_row, codes_pointer + row * 2 * width, 2 * width, inverse, LARGEST, BLOCK)


@triton.jit
def rotate_kernel(
    x_pointer, x_stride, head_stride, cos_pointer, sin_pointer, y_pointer, y_stride, heads, sign,
    TURNS: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """`block_ops.rotate_rows` of one token; heads are padded to `HEADS`. `y` may be `x`."""
    HALF: tl.constexpr = WIDTH // 2
    row = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEADS)[:, None]
    half = tl.arange(0, HALF)[None, :]
    inside = (head < heads) & (half < HALF)
    source = x_pointer + row * x_stride + head * head_stride + half
    low = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(source + HALF, mask=inside, other=0.0).to(tl.float32)
    if TURNS:
        cos = tl.load(cos_pointer + row * WIDTH + half).to(tl.float32)
        sin = tl.load(sin_pointer + row * WIDTH + half).to(tl.float32) * sign
        low, high = low * cos - high * sin, high * cos + low * sin
    place = y_pointer + row * y_stride + head * WIDTH + half
    dtype: tl.constexpr = y_pointer.dtype.element_ty
    tl.store(place, low.to(dtype), mask=inside)
    tl.store(place + HALF, high.to(dtype), mask=inside)


def launch_quantize(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`x [T, D]` contiguous -> codes `[T, D]`, scales `[T, 1]`."""
    codes, scales = _codes(x, dtype)
    if len(x):
        quantize_kernel[(len(x),)](
            x, codes, scales, x.shape[1], LARGEST=torch.finfo(dtype).max, BLOCK=BLOCK, num_warps=8
        )
    return codes, scales


def launch_norm(
    x: Tensor, change: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
    """`x`, `change` `[T, D]` contiguous -> total, norm, and its codes and scales in `dtype`."""
    rows, width = x.shape
    y = torch.empty_like(x)
    total = x if change is None else torch.empty_like(x)
    quantized = None if dtype is None else _codes(y, dtype)
    codes, scales = quantized or (y, y)
    norm_kernel[(rows,)](
        x, x if change is None else change, weight, total, y, codes, scales, width, eps, ADD=change is not None,
        QUANTIZE=dtype is not None, LARGEST=_largest(dtype), BLOCK=triton.next_power_of_2(width), num_warps=8,
    )  # fmt: skip
    return total, y, quantized


def launch_norm_backward(grad_y: Tensor, x: Tensor, weight: Tensor, eps: float, added: Tensor) -> Tensor:
    """`grad_y`, `x`, `added` `[T, D]` contiguous, `weight [D]` -> the gradient of x, `[T, D]`."""
    grad_x = torch.empty_like(x)
    norm_backward_kernel[(len(x),)](
        grad_y, x, weight, added, grad_x, x.shape[1], eps, BLOCK=triton.next_power_of_2(x.shape[1]), num_warps=8
    )
    return grad_x


def launch_swiglu(gate: Tensor, up: Tensor, dtype: torch.dtype | None) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """`gate`, `up` `[T, N]`, columns contiguous -> `[T, N]`, and its codes and scales in `dtype`."""
    rows, width = gate.shape
    y = gate.new_empty(rows, width)
    quantized = None if dtype is None else _codes(y, dtype)
    codes, scales = quantized or (y, y)
    swiglu_kernel[(rows,)](
        gate, up, gate.stride(0), up.stride(0), y, codes, scales, width, QUANTIZE=dtype is not None,
        LARGEST=_largest(dtype), BLOCK=BLOCK, num_warps=8,
    )  # fmt: skip
    return y, quantized


def launch_swiglu_backward(
    grad_y: Tensor, gate: Tensor, up: Tensor, dtype: torch.dtype | None
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """`grad_y [T, N]` contiguous -> gradients of gate and up side by side `[T, 2N]`, and their codes and scales."""
    rows, width = gate.shape
    joint = gate.new_empty(rows, 2 * width)
    quantized = None if dtype is None else _codes(joint, dtype)
    codes, scales = quantized or (joint, joint)
    swiglu_backward_kernel[(rows,)](
        grad_y, gate, up, gate.stride(0), up.stride(0), joint, codes, scales, width, QUANTIZE=dtype is not None,
        LARGEST=_largest(dtype), BLOCK=BLOCK, num_warps=8,
    )  # fmt: skip
    return joint, quantized


def launch_rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, direction: int) -> None:
    """`x [T, H, D_h]`, heads contiguous, `cos`, `sin` `[T, D_h]` -> `out [T, H D_h]`, columns contiguous."""
    rows, heads, width = x.shape
    rotate_kernel[(rows,)](
        x, x.stride(0), x.stride(1), cos, sin, out, out.stride(0), heads, float(direction), TURNS=direction != 0,
        HEADS=triton.next_power_of_2(heads), WIDTH=width, num_warps=4,
    )  # fmt: skip


def _codes(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return empty codes `[T, D]` and scales `[T, 1]` for `x [T, D]`."""
    return torch.empty_like(x, dtype=dtype), x.new_empty(len(x), 1, dtype=torch.float32)


def _largest(dtype: torch.dtype | None) -> float:
    return 1.0 if dtype is None else torch.finfo(dtype).max
