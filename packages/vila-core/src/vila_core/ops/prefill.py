"""Operators of a forward pass over many tokens: rotary embedding in place, SwiGLU of two products.

B rows, T tokens, M = B · T, H query heads, H_kv key/value heads, D_h head width, N outputs of the MLP

    q, k = rotate(q), rotate(k)        grid (M, H + H_kv)
    y = silu(gate) · up                grid (M · N / BLOCK,)

References: `reference.rotate`, `reference.swiglu`. Layouts: q `[M, H, D_h]`, k `[M, H_kv, D_h]`, gate, up and y
`[M, N]` row-major.
"""

# Triton has no types: a kernel's arguments and its launch are not checked. Compile-time constants are in capitals.
# ruff: noqa: N803, N806
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportArgumentType=false, reportIndexIssue=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048


@triton.jit
def rotate_heads_kernel(
    q_pointer, k_pointer, cos_pointer, sin_pointer, tokens, heads, kv_heads, angle_rows,
    WIDTH: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """See the module; one block per token."""
    HALF: tl.constexpr = WIDTH // 2
    token = tl.program_id(0).to(tl.int64)
    half = tl.arange(0, HALF)
    row = tl.where(angle_rows == tokens, token % tokens, token)
    cos = tl.load(cos_pointer + row * WIDTH + half).to(tl.float32)[None, :]
    sin = tl.load(sin_pointer + row * WIDTH + half).to(tl.float32)[None, :]
    head = tl.arange(0, HEADS)
    of_q = (token * heads + head)[:, None] * WIDTH + half[None, :]
    of_k = (token * kv_heads + head - heads)[:, None] * WIDTH + half[None, :]
    is_query = (head < heads)[:, None]
    place = tl.where(is_query, q_pointer + of_q, k_pointer + of_k)
    mask = tl.broadcast_to((head < heads + kv_heads)[:, None], (HEADS, HALF))
    low = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    high = tl.load(place + HALF, mask=mask, other=0.0).to(tl.float32)
    tl.store(place, (low * cos - high * sin).to(q_pointer.dtype.element_ty), mask=mask)
    tl.store(place + HALF, (high * cos + low * sin).to(q_pointer.dtype.element_ty), mask=mask)


@torch.library.custom_op("vila::rotate_heads", mutates_args=("q", "k"))
def rotate_heads(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotate heads in place.

    Args:
        q: `[B, T, H, D_h]` contiguous.
        k: `[B, T, H_kv, D_h]` contiguous.
        cos: `[B or 1, 1, T, D_h]` contiguous, both halves of the last dimension equal.
        sin: the same.
    """
    tokens, heads, width = q.shape[1:]
    assert q.is_contiguous()
    assert k.is_contiguous()
    assert cos.is_contiguous()
    assert sin.is_contiguous()
    if q.numel():
        rotate_heads_kernel[(q.shape[0] * tokens,)](
            q, k, cos, sin, tokens, heads, k.shape[2], cos.shape[0] * tokens, WIDTH=width,
            HEADS=triton.next_power_of_2(heads + k.shape[2]), num_warps=4,
        )  # fmt: skip


@rotate_heads.register_fake
def _(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> None:
    del q, k, cos, sin


@triton.jit
def silu_multiply_kernel(gate_pointer, up_pointer, y_pointer, count, BLOCK: tl.constexpr):
    """See the module."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = index < count
    gate = tl.load(gate_pointer + index, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(up_pointer + index, mask=mask, other=0.0).to(tl.float32)
    y = gate * tl.sigmoid(gate) * up
    tl.store(y_pointer + index, y.to(y_pointer.dtype.element_ty), mask=mask)


@torch.library.custom_op("vila::silu_multiply", mutates_args=())
def silu_multiply(gate: Tensor, up: Tensor) -> Tensor:
    """`gate`, `up` `[..., N]` contiguous -> `silu(gate) · up`."""
    assert gate.is_contiguous()
    assert up.is_contiguous()
    assert gate.shape == up.shape
    y = gate.new_empty(gate.shape)
    if y.numel():
        silu_multiply_kernel[(triton.cdiv(y.numel(), BLOCK),)](gate, up, y, y.numel(), BLOCK=BLOCK, num_warps=8)
    return y


@silu_multiply.register_fake
def _(gate: Tensor, up: Tensor) -> Tensor:
    del up
    return gate.new_empty(gate.shape)
