"""Rotary embedding of new tokens and their write to the KV cache (reference: `reference.rotate_and_write`).

B rows, H query heads, H_kv key/value heads, D_h head width, S slots

Layouts: qkv `[B, (H + 2 H_kv) · D_h]`, queries `[B, H, D_h]`, caches `[B, H_kv, S, D_h]`. Grid: (B, H + 2 H_kv), one
block per head. `attention.decode_attention` does the same on the way; this is for attention of another kind.
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
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from vila_core.ops.attention_kernel import rotated
from vila_core.ops.support import launches_early


@triton.jit
def rotate_and_write_kernel(
    qkv_pointer, cos_pointer, sin_pointer, positions_pointer, q_pointer, keys_pointer, values_pointer,
    qkv_stride, outer_stride, head_stride, heads, kv_heads, WIDTH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """See the module; one block per head."""
    HALF: tl.constexpr = WIDTH // 2
    dtype: tl.constexpr = q_pointer.dtype.element_ty
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    half = tl.arange(0, HALF)
    position = tl.load(positions_pointer + row)
    angle = tl.maximum(position, 0) * HALF + half
    cos, sin = tl.load(cos_pointer + angle), tl.load(sin_pointer + angle)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    source = qkv_pointer + row * qkv_stride + head * WIDTH + half
    low, high = tl.load(source), tl.load(source + HALF)
    if head < heads + kv_heads:
        low, high = rotated(low, high, cos, sin, dtype)
    if head < heads:
        place = q_pointer + (row * heads + head) * WIDTH + half
        tl.store(place, low)
        tl.store(place + HALF, high)
    else:
        cache = keys_pointer if head < heads + kv_heads else values_pointer
        kv_head = (head - heads) % kv_heads
        place = cache + row * outer_stride + kv_head.to(tl.int64) * head_stride + position * WIDTH + half
        tl.store(place, low, mask=position >= 0)
        tl.store(place + HALF, high, mask=position >= 0)


@torch.library.custom_op("vila::rotate_and_write", mutates_args=("keys", "values"))
def rotate_and_write(qkv: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Return rotated queries `[B, H, D_h]`; write rotated keys, and values, to slot `positions[b]` of row b.

    Args:
        qkv: `[B, (H + 2 H_kv) · D_h]`, rows contiguous.
        cos: `[S, D_h / 2]` float32, by position.
        sin: the same.
        positions: int64 `[B]`; a row whose position is negative writes nothing.
        keys: `[B, H_kv, S, D_h]`.
        values: as `keys`.
    """
    rows, num_kv_heads, _, width = keys.shape
    num_heads = qkv.shape[1] // width - 2 * num_kv_heads
    assert keys.stride() == values.stride()
    assert keys.stride(2) == width
    assert qkv.stride(1) == 1
    q = qkv.new_empty(rows, num_heads, width)
    pdl = launches_early(qkv.device)
    if rows:
        rotate_and_write_kernel[(rows, num_heads + 2 * num_kv_heads)](
            qkv, cos, sin, positions, q, keys, values, qkv.stride(0), keys.stride(0), keys.stride(1), num_heads,
            num_kv_heads, WIDTH=width, PDL=pdl, num_warps=1, **({"launch_pdl": True} if pdl else {}),
        )  # fmt: skip
    return q


@rotate_and_write.register_fake
def _(qkv: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    del cos, sin, positions, values
    rows, num_kv_heads, _, width = keys.shape
    return qkv.new_empty(rows, qkv.shape[1] // width - 2 * num_kv_heads, width)
