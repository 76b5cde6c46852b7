"""Root-mean-square norm of a sum (reference: `reference.add_rms_norm`).

B rows, D width

    h = x + residual,    y = round(h / sqrt(mean(h²) + eps)) · weight

Sums in fp32; the normalized values are rounded to the dtype before the weight is applied, as in `decoder.RMSNorm`.
Layouts: x, residual, h and y `[B, D]` row-major. Grid: (B,).
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

from vila_core.ops.support import launches_early


@triton.jit
def normalized(h, weight, width, eps, dtype: tl.constexpr):
    """Return the RMS norm of a row, rounded to `dtype` before and after the product with its weight, both fp32."""
    inverse = tl.rsqrt(tl.sum(h * h, axis=0) / width + eps)
    return ((h * inverse).to(dtype).to(tl.float32) * weight).to(dtype)


@triton.jit
def add_rms_norm_kernel(
    x_pointer, residual_pointer, weight_pointer, y_pointer, h_pointer, width, x_stride, eps,
    HAS_RESIDUAL: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """See the module; one block per row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < width
    weight = tl.load(weight_pointer + column, mask=mask, other=0.0).to(tl.float32)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    h = tl.load(x_pointer + row * x_stride + column, mask=mask, other=0.0)
    dtype = h.dtype
    if HAS_RESIDUAL:
        residual = tl.load(residual_pointer + row * width + column, mask=mask, other=0.0)
        h = (h.to(tl.float32) + residual.to(tl.float32)).to(dtype)
        tl.store(h_pointer + row * width + column, h, mask=mask)
    tl.store(y_pointer + row * width + column, normalized(h.to(tl.float32), weight, width, eps, dtype), mask=mask)


@torch.library.custom_op("vila::add_rms_norm", mutates_args=())
def _add_rms_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    rows, width = x.shape
    y = x.new_empty(rows, width)
    h = x.new_empty(rows if residual is not None else 0, width)
    pdl = launches_early(x.device)
    if rows:
        add_rms_norm_kernel[(rows,)](
            x, x if residual is None else residual, weight, y, h, width, x.stride(0), eps,
            HAS_RESIDUAL=residual is not None, BLOCK=triton.next_power_of_2(width), PDL=pdl, num_warps=8,
            **({"launch_pdl": True} if pdl else {}),
        )  # fmt: skip
    return y, h


@_add_rms_norm.register_fake
def _(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    del weight, eps
    return x.new_empty(x.shape), x.new_empty(x.shape[0] if residual is not None else 0, x.shape[1])


def add_rms_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the norm of `x + residual` times `weight`, and `x + residual`, both `[B, D]`.

    Args:
        x: `[B, D]`, rows contiguous.
        residual: `[B, D]` contiguous; None means 0.
        weight: `[D]`.
        eps: added to the mean square.
    """
    assert x.stride(1) == 1
    assert residual is None or (residual.is_contiguous() and residual.shape == x.shape)
    y, h = torch.ops.vila.add_rms_norm(x, residual, weight, eps)
    return y, x if residual is None else h
