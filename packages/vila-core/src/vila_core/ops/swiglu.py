"""SwiGLU of a joined product (reference: `reference.swiglu`).

B rows, N outputs

    y = silu(gate) · up

Layouts: gate_up `[B, 2N]` (gate, then up) and y `[B, N]` row-major. Grid: (N / BLOCK, B).
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

BLOCK = 1024


@triton.jit
def swiglu_kernel(gate_up_pointer, y_pointer, width, stride, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """See the module."""
    row = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = column < width
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    gate = tl.load(gate_up_pointer + row * stride + column, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up_pointer + row * stride + width + column, mask=mask, other=0.0).to(tl.float32)
    y = gate * tl.sigmoid(gate) * up
    tl.store(y_pointer + row * width + column, y.to(y_pointer.dtype.element_ty), mask=mask)


@torch.library.custom_op("vila::swiglu", mutates_args=())
def swiglu(gate_up: Tensor) -> Tensor:
    """`[B, 2N]` (gate, then up), rows contiguous -> `silu(gate) · up` `[B, N]`."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    assert gate_up.stride(1) == 1
    y = gate_up.new_empty(rows, width)
    pdl = launches_early(gate_up.device)
    if rows:
        swiglu_kernel[(triton.cdiv(width, BLOCK), rows)](
            gate_up, y, width, gate_up.stride(0), BLOCK=BLOCK, PDL=pdl, num_warps=4,
            **({"launch_pdl": True} if pdl else {}),
        )  # fmt: skip
    return y


@swiglu.register_fake
def _(gate_up: Tensor) -> Tensor:
    return gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)
