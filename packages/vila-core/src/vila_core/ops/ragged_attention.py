"""Attention of several new tokens of each row to a paged KV cache, rotary embedding and cache write included.

N tokens of all rows one after the other, H query heads, H_kv key/value heads, G = H / H_kv, D_h head width,
P slots of a page, S splits

    keys[p], values[p] = rotate(k), v                                  for each new token at position p of its row
    out[n, h] = softmax(rotate(q)[n, h] · K[0 … p, h // G]ᵀ / sqrt(D_h)) V[0 … p, h // G]

Which tokens belong to which row, and where they are, is read on the device: a captured CUDA graph serves any prompts,
whole or continued, that fit its N. Reference: `reference.ragged_attention`.

**Writing** (`place_kernel`), grid (N,): rotates q in place, and writes keys and values to their slots.

**Attention** (`ragged_attention_kernel`), grid (query blocks · H_kv, S): a block serves the G queries of some
consecutive tokens of a row, so keys are read once for all of them. For a few tokens that see many, the visible slots
are divided among S blocks, whose parts `merge_kernel` adds up in order.
"""

# Triton has no types: a kernel's arguments and its launch are not checked. Compile-time constants are in capitals.
# ruff: noqa: N803, N806
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportArgumentType=false, reportIndexIssue=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from vila_core.ops.attention import LOG2_E, MULTIPROCESSORS
from vila_core.ops.attention_kernel import first_block, rotated
from vila_core.ops.support import launches_early

BLOCK = 64
"""Slots that are read at a time; a page has a multiple of it."""
FEW_TOKENS = 256
"""Up to so many tokens, blocks serve half as many queries, so that there are more of them."""
FEW_IN_LONG = 32
"""The same for tokens that see many others, whose blocks are split."""
MAX_SPLITS = 16
UNUSED = -1
"""The position and the slot of a token that is only padding."""


@dataclass(frozen=True)
class RaggedTokens:
    """Which tokens are read, all on the GPU.

    Attributes:
        positions: int64 `[N]`, of the tokens in their rows; `UNUSED` for padding, which may only be at the end.
        slots: int64 `[N]`: page · P + slot in the page, where keys and values are written; `UNUSED` for padding.
        blocks: int32 `[B, 4]`: of each query block its first token, how many tokens it has (at most `block_tokens`;
            0 if it is not in use), the position of the first one, and their row in `table`.
        table: int32 `[rows, pages of a row]`.
    """

    positions: Tensor
    slots: Tensor
    blocks: Tensor
    table: Tensor


def block_rows(tokens: int, *, long: bool) -> int:
    """Return how many queries a block serves if there are so many tokens; `long`: some of them see many others."""
    return 64 if tokens <= (FEW_IN_LONG if long else FEW_TOKENS) else 128


def block_tokens(tokens: int, group: int, *, long: bool) -> int:
    """Return how many tokens a query block has at most, if `group` queries share a key/value head."""
    return max(1, block_rows(tokens, long=long) // group)


def num_splits(tokens: int, group: int, num_kv_heads: int, *, long: bool) -> int:
    """Return into how many parts the visible slots are divided: as many as fill the GPU twice."""
    if not long:
        return 1
    blocks = -(-tokens // block_tokens(tokens, group, long=long)) * num_kv_heads
    return max(1, min(MAX_SPLITS, 2 * MULTIPROCESSORS // blocks))


@triton.jit
def _finite(x):
    """Return x with 0 in place of values that are not finite: 0 · NaN is NaN."""
    return tl.where(tl.abs(x.to(tl.float32)) < float("inf"), x, 0.0)


@triton.jit
def place_kernel(
    qkv_pointer, cos_pointer, sin_pointer, positions_pointer, slots_pointer, keys_pointer, values_pointer,
    qkv_stride, outer_stride, head_stride, page, heads, kv_heads,
    WIDTH: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """See the module; one block per token."""
    HALF: tl.constexpr = WIDTH // 2
    dtype: tl.constexpr = keys_pointer.dtype.element_ty
    token = tl.program_id(0).to(tl.int64)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    position, slot = tl.load(positions_pointer + token), tl.load(slots_pointer + token)
    half, head = tl.arange(0, HALF), tl.arange(0, HEADS)
    angle = tl.maximum(position, 0) * HALF + half
    cos, sin = tl.load(cos_pointer + angle)[None, :], tl.load(sin_pointer + angle)[None, :]
    first = qkv_pointer + token * qkv_stride
    source = first + head[:, None] * WIDTH + half[None, :]
    turned = tl.broadcast_to((head < heads + kv_heads)[:, None], (HEADS, HALF))
    low, high = rotated(
        tl.load(source, mask=turned, other=0.0), tl.load(source + HALF, mask=turned, other=0.0), cos, sin, dtype
    )
    is_query = tl.broadcast_to((head < heads)[:, None], (HEADS, HALF))
    tl.store(source, low, mask=is_query)
    tl.store(source + HALF, high, mask=is_query)
    place = (slot // page) * outer_stride + (slot % page) * WIDTH
    of_key = keys_pointer + place + (head - heads).to(tl.int64)[:, None] * head_stride + half[None, :]
    is_key = turned & (head >= heads)[:, None] & (slot >= 0)
    tl.store(of_key, _finite(low).to(dtype), mask=is_key)
    tl.store(of_key + HALF, _finite(high).to(dtype), mask=is_key)
    kv_head, whole = tl.arange(0, KV_HEADS), tl.arange(0, WIDTH)
    is_value = tl.broadcast_to((kv_head < kv_heads)[:, None], (KV_HEADS, WIDTH)) & (slot >= 0)
    source = first + (heads + kv_heads + kv_head)[:, None] * WIDTH + whole[None, :]
    value = tl.load(source, mask=is_value, other=0.0)
    of_value = values_pointer + place + kv_head.to(tl.int64)[:, None] * head_stride + whole[None, :]
    tl.store(of_value, _finite(value).to(dtype), mask=is_value)


@triton.jit
def ragged_attention_kernel(
    qkv_pointer, blocks_pointer, table_pointer, keys_pointer, values_pointer, parts_pointer, sums_pointer, out_pointer,
    qkv_stride, outer_stride, head_stride, table_stride, page, window, tokens, kv_heads, splits, scale,
    GROUP: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, IN_PARTS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """See the module. `scale` includes log2(e)."""
    dtype: tl.constexpr = keys_pointer.dtype.element_ty
    block, kv_head = tl.program_id(0) // kv_heads, tl.program_id(0) % kv_heads
    split = tl.program_id(1)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    first, count = tl.load(blocks_pointer + block * 4), tl.load(blocks_pointer + block * 4 + 1)
    position, row = tl.load(blocks_pointer + block * 4 + 2), tl.load(blocks_pointer + block * 4 + 3)
    query = tl.arange(0, ROWS)
    token = query // GROUP
    used = token < count
    head = kv_head * GROUP + query % GROUP
    whole, slot = tl.arange(0, WIDTH), tl.arange(0, BLOCK)
    number = (first + token).to(tl.int64)
    q = tl.load(
        qkv_pointer + (number * qkv_stride + head * WIDTH)[:, None] + whole[None, :], mask=used[:, None], other=0.0
    )
    own = position + token
    end = tl.where(count > 0, position + count, 0)
    start = first_block(position, window, BLOCK)
    share = tl.cdiv(tl.cdiv(end - start, BLOCK), splits) * BLOCK
    begin = start + split * share
    stop = tl.minimum(begin + share, end)
    keys, values = (
        keys_pointer + kv_head.to(tl.int64) * head_stride,
        values_pointer + kv_head.to(tl.int64) * head_stride,
    )
    most = tl.full([ROWS], -1e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, WIDTH], tl.float32)
    for place in range(begin, stop, BLOCK):
        index = tl.load(table_pointer + row * table_stride + place // page).to(tl.int64)
        written = (place + slot < end)[:, None]
        pointers = index * outer_stride + ((place % page) + slot)[:, None] * WIDTH + whole[None, :]
        k = tl.load(keys + pointers, mask=written, other=0.0)
        v = tl.load(values + pointers, mask=written, other=0.0)
        seen = (place + slot)[None, :] <= own[:, None]
        if window > 0:
            seen &= (place + slot)[None, :] > own[:, None] - window
        scores = tl.where(seen, tl.dot(q, tl.trans(k)) * scale, float("-inf"))
        larger = tl.maximum(most, tl.max(scores, axis=1))
        weights = tl.exp2(scores - larger[:, None])
        shrink = tl.exp2(most - larger)
        total = total * shrink + tl.sum(weights, axis=1)
        out = out * shrink[:, None] + tl.dot(weights.to(dtype), v)
        most = larger
    if not IN_PARTS:
        out = out / tl.where(used, total, 1.0)[:, None]
        place = number * (kv_heads * GROUP * WIDTH) + head * WIDTH
        tl.store(out_pointer + place[:, None] + whole[None, :], out.to(dtype), mask=used[:, None])
    else:
        part = (split.to(tl.int64) * tokens + number) * (kv_heads * GROUP) + head
        kept = used & (begin < end)
        tl.store(parts_pointer + part[:, None] * WIDTH + whole[None, :], out, mask=kept[:, None])
        tl.store(sums_pointer + part * 2, most, mask=kept)
        tl.store(sums_pointer + part * 2 + 1, total, mask=kept)


@triton.jit
def merge_kernel(
    blocks_pointer, parts_pointer, sums_pointer, out_pointer, window, tokens, kv_heads, splits,
    GROUP: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Add up the parts of a query block; grid (query blocks · H_kv,)."""
    block, kv_head = tl.program_id(0) // kv_heads, tl.program_id(0) % kv_heads
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    first, count = tl.load(blocks_pointer + block * 4), tl.load(blocks_pointer + block * 4 + 1)
    position = tl.load(blocks_pointer + block * 4 + 2)
    query, whole = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    token = query // GROUP
    used = token < count
    head = kv_head * GROUP + query % GROUP
    number = (first + token).to(tl.int64)
    end = tl.where(count > 0, position + count, 0)
    start = first_block(position, window, BLOCK)
    blocks = tl.cdiv(end - start, BLOCK)
    parts = tl.where(count > 0, tl.cdiv(blocks, tl.maximum(tl.cdiv(blocks, splits), 1)), 0)
    most = tl.full([ROWS], -1e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, WIDTH], tl.float32)
    for split in range(parts):
        part = (split * tokens + number) * (kv_heads * GROUP) + head
        most_of_part = tl.load(sums_pointer + part * 2, mask=used, other=-1e30)
        total_of_part = tl.load(sums_pointer + part * 2 + 1, mask=used, other=0.0)
        values = tl.load(parts_pointer + part[:, None] * WIDTH + whole[None, :], mask=used[:, None], other=0.0)
        larger = tl.maximum(most, most_of_part)
        shrink, weight = tl.exp2(most - larger), tl.exp2(most_of_part - larger)
        total = total * shrink + total_of_part * weight
        out = out * shrink[:, None] + values * weight[:, None]
        most = larger
    out = out / tl.where(used, total, 1.0)[:, None]
    place = number * (kv_heads * GROUP * WIDTH) + head * WIDTH
    tl.store(out_pointer + place[:, None] + whole[None, :], out.to(out_pointer.dtype.element_ty), mask=used[:, None])


def attend(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    new: RaggedTokens,
    keys: Tensor,
    values: Tensor,
    window: int = 0,
    *,
    long: bool = True,
) -> Tensor:
    """Write the new tokens to the cache and attend to it: `[N, H · D_h]`. `qkv` is changed; padding gives anything.

    Args:
        qkv: `[N, (H + 2 H_kv) · D_h]`, rows contiguous, not rotated.
        cos: float32 `[positions, D_h / 2]`, by position.
        sin: the same.
        new: the tokens.
        keys: of a layer, `[pages, H_kv, P, D_h]`, P a multiple of 64.
        values: the same.
        window: how many tokens back a token sees, itself included; 0 sees all.
        long: whether some tokens see more than about a thousand others; the result is the same, but for rounding.
    """
    tokens, (_, kv_heads, page, width) = len(qkv), keys.shape
    heads = qkv.shape[1] // width - 2 * kv_heads
    group = heads // kv_heads
    assert page % BLOCK == 0, f"pages of {page} slots; the kernel takes multiples of {BLOCK}"
    assert keys.stride() == values.stride()
    assert keys.stride()[2:] == (width, 1)
    assert qkv.stride(1) == 1
    out = qkv.new_empty(tokens, heads * width)
    rows, splits = block_rows(tokens, long=long), num_splits(tokens, group, kv_heads, long=long)
    parts = qkv.new_empty((splits, tokens, heads, width) if splits > 1 else (0,), dtype=torch.float32)
    sums = qkv.new_empty((splits, tokens, heads, 2) if splits > 1 else (0,), dtype=torch.float32)
    pdl = launches_early(qkv.device)
    launch = {"launch_pdl": True} if pdl else {}
    strides = keys.stride(0), keys.stride(1)
    place_kernel[(tokens,)](
        qkv, cos, sin, new.positions, new.slots, keys, values, qkv.stride(0), *strides, page, heads, kv_heads,
        WIDTH=width, HEADS=triton.next_power_of_2(heads + kv_heads), KV_HEADS=triton.next_power_of_2(kv_heads), PDL=pdl,
        num_warps=4, **launch,
    )  # fmt: skip
    grid = len(new.blocks) * kv_heads
    ragged_attention_kernel[(grid, splits)](
        qkv, new.blocks, new.table, keys, values, parts, sums, out, qkv.stride(0), *strides, new.table.stride(0), page,
        window, tokens, kv_heads, splits, LOG2_E / width**0.5, GROUP=group, WIDTH=width, ROWS=rows, BLOCK=BLOCK,
        IN_PARTS=splits > 1, PDL=pdl, num_warps=rows // 16, num_stages=2, **launch,
    )  # fmt: skip
    if splits > 1:
        merge_kernel[(grid,)](
            new.blocks, parts, sums, out, window, tokens, kv_heads, splits, GROUP=group, WIDTH=width, ROWS=rows,
            BLOCK=BLOCK, PDL=pdl, num_warps=4, **launch,
        )  # fmt: skip
    return out
