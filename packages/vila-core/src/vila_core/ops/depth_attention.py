"""Attention of one new code in each row to the codes of its position so far (reference: `reference.depth_attention`).

R rows, A heads, W head width, D codes per position

    out[r, a] = softmax(q[r, a] · K[r, a, :d + 1]ᵀ / sqrt(W)) V[r, a, :d + 1],    d the depth of the new code

Layouts: qkv `[R, 3 A W]` (q, k and v side by side), keys and values `[R, A, D, W]`, out `[R, A W]`. Grid: (A, R).
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
def depth_attention_kernel(
    qkv_pointer, keys_pointer, values_pointer, out_pointer, width, depth, depths, scale,
    BLOCK: tl.constexpr, DEPTHS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """See the module. `BLOCK` and `DEPTHS` are powers of two that hold a head and all codes."""
    head, row, heads = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.num_programs(0)
    column, slot = tl.arange(0, BLOCK), tl.arange(0, DEPTHS)
    inside = column < width
    new = qkv_pointer + row * 3 * heads * width + head * width + column
    cache = (row * heads + head) * depths * width + slot[:, None] * width + column[None, :]
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    q = tl.load(new, mask=inside, other=0.0).to(tl.float32)
    k = tl.load(new + heads * width, mask=inside, other=0.0)
    v = tl.load(new + 2 * heads * width, mask=inside, other=0.0)
    before, own = (slot < depth)[:, None] & inside[None, :], (slot == depth)[:, None]
    keys = tl.where(own, k[None, :], tl.load(keys_pointer + cache, mask=before, other=0.0))
    values = tl.where(own, v[None, :], tl.load(values_pointer + cache, mask=before, other=0.0))
    tl.store(keys_pointer + cache, keys, mask=own & inside[None, :])
    tl.store(values_pointer + cache, values, mask=own & inside[None, :])
    scores = tl.where(slot <= depth, tl.sum(keys.to(tl.float32) * q[None, :], axis=1) * scale, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, axis=0))
    out = tl.sum(weights[:, None] * values.to(tl.float32), axis=0) / tl.sum(weights, axis=0)
    place = out_pointer + (row * heads + head) * width + column
    tl.store(place, out.to(out_pointer.dtype.element_ty), mask=inside)


@torch.library.custom_op("vila::depth_attention", mutates_args=("keys", "values"))
def depth_attention(qkv: Tensor, keys: Tensor, values: Tensor, depth: int) -> Tensor:
    """Write the new keys and values to the cache at `depth`, and attend to the depths up to it.

    Args:
        qkv: `[R, 3 A W]` fp16 or bf16, contiguous.
        keys: the cache `[R, A, D, W]`, contiguous, in the same dtype; updated in place.
        values: likewise.
        depth: index of the new code, 0 to D - 1.

    Returns:
        `[R, A W]` in the same dtype.
    """
    rows, heads, depths, width = keys.shape
    assert qkv.shape == (rows, 3 * heads * width)
    assert qkv.is_contiguous()
    assert keys.is_contiguous()
    assert values.is_contiguous()
    assert keys.shape == values.shape
    assert 0 <= depth < depths
    out = qkv.new_empty(rows, heads * width)
    pdl = launches_early(qkv.device)
    if rows:
        depth_attention_kernel[(heads, rows)](
            qkv, keys, values, out, width, depth, depths, width**-0.5,
            BLOCK=triton.next_power_of_2(width), DEPTHS=triton.next_power_of_2(depths), PDL=pdl, num_warps=1,
            **({"launch_pdl": True} if pdl else {}),
        )  # fmt: skip
    return out


@depth_attention.register_fake
def _(qkv: Tensor, keys: Tensor, values: Tensor, depth: int) -> Tensor:
    del values, depth
    return qkv.new_empty(keys.shape[0], keys.shape[1] * keys.shape[3])
