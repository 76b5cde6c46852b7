"""The kernel of `attention`: one new token per row attends to the KV cache, rotary embedding and cache write included.

B rows, H query heads, H_kv key/value heads, G = H / H_kv, D_h head width, S slots, P slots of a page

**Grid** (H_kv · B, splits). The visible slots of a row are divided among as many blocks as there are blocks of `BLOCK`
slots, at most `splits`; a block serves all queries that share a key/value head. Up to `PARTS` parts are left for the
next linear to merge (see `SplitHeads`); of more the last block to finish merges them, in order, so results do not
depend on timing. The block that has the last slots writes the new key and value.

**Early launch.** Old keys and values of the first `BLOCK` slots are loaded before the wait for the kernel ahead, which
computes the new token: slots below the position were written many kernels ago. Blocks without slots bring the weights
of the next two products into L2 meanwhile.
"""

# Triton has no types: a kernel's arguments and its launch are not checked. Compile-time constants are in capitals.
# ruff: noqa: N803, N806, RUF005
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportArgumentType=false, reportIndexIssue=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from vila_core.ops.eight_bits_kernel import CODES_PER_NUMBER, decoded, quantized
from vila_core.ops.prefetch import prefetch_into_l2


@triton.jit
def first_block(position, window, BLOCK: tl.constexpr):
    """Return the first slot of the first block that a token at `position` sees something of."""
    start = tl.where(window > 0, tl.maximum(0, position + 1 - window), 0)
    return start // BLOCK * BLOCK


@triton.jit
def parts_left(position, window, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """Return how many parts attention leaves to merge: 1 if it has merged them."""
    blocks = tl.cdiv(position + 1 - first_block(position, window, BLOCK), BLOCK)
    return tl.where((blocks > 0) & (blocks <= PARTS), blocks, 1)


@triton.jit
def rotated(low, high, cos, sin, dtype: tl.constexpr):
    """Return both halves of rotated heads, rounded to `dtype`."""
    low, high = low.to(tl.float32), high.to(tl.float32)
    return (low * cos - high * sin).to(dtype), (high * cos + low * sin).to(dtype)


@triton.jit
def _first_slot(table_pointer, row, slot, table_stride, page, outer_stride, WIDTH: tl.constexpr, PAGED: tl.constexpr):
    """Return where slot `slot` of the row is, counted from the start of the layer."""
    if PAGED:
        index = tl.load(table_pointer + row * table_stride + slot // page)
        return index.to(tl.int64) * outer_stride + (slot % page) * WIDTH
    else:
        return row.to(tl.int64) * outer_stride + slot.to(tl.int64) * WIDTH


@triton.jit
def _load_slots(
    keys, values, key_scales, value_scales, place, visible, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    QUANTIZED: tl.constexpr,
):  # fmt: skip
    """Return keys, as halves `[BLOCK, D_h / 2]`, and values `[BLOCK, D_h]`, in 8 bits with scales; zeros if hidden."""
    slot = tl.arange(0, BLOCK)[:, None] * WIDTH
    half, whole = tl.arange(0, WIDTH // 2)[None, :], tl.arange(0, WIDTH)[None, :]
    k_pointers = tl.multiple_of(keys + place + slot + half, (16, 16))
    v_pointers = tl.multiple_of(values + place + slot + whole, (16, 16))
    k_low = tl.load(k_pointers, mask=visible[:, None], other=0)
    k_high = tl.load(k_pointers + WIDTH // 2, mask=visible[:, None], other=0)
    v = tl.load(v_pointers, mask=visible[:, None], other=0)
    if QUANTIZED:
        scale = place // WIDTH + tl.arange(0, BLOCK)
        k_scale = tl.load(key_scales + scale, mask=visible, other=0.0)
        return k_low, k_high, v, k_scale, tl.load(value_scales + scale, mask=visible, other=0.0)
    else:
        return k_low, k_high, v


@triton.jit
def _attend(
    q_low, q_high, slots, visible, most, total, out, scale, QUANTIZED: tl.constexpr, INLINE: tl.constexpr
):  # fmt: skip
    """Return the running maximum, sum of weights and weighted values with `BLOCK` more slots."""
    dtype: tl.constexpr = q_low.dtype
    k_low, k_high, v = slots[0], slots[1], slots[2]
    if QUANTIZED:
        k_low, k_high, v = decoded(k_low, dtype, INLINE), decoded(k_high, dtype, INLINE), decoded(v, dtype, INLINE)
    scores = tl.dot(q_low, tl.trans(k_low)) + tl.dot(q_high, tl.trans(k_high))
    if QUANTIZED:
        scores *= (slots[3].to(tl.float32) * CODES_PER_NUMBER)[None, :]
    scores = tl.where(visible[None, :], scores * scale, float("-inf"))
    larger = tl.maximum(most, tl.max(scores, axis=1))
    weights = tl.exp2(scores - larger[:, None])
    shrink = tl.exp2(most - larger)
    total = total * shrink + tl.sum(weights, axis=1)
    if QUANTIZED:
        # The largest scale of the block is applied afterwards: weights times scales might be too small for fp16.
        v_scale = slots[4].to(tl.float32)
        largest = tl.maximum(tl.max(v_scale, axis=0), 1.2e-38)
        added = tl.dot((weights * (v_scale / largest)[None, :]).to(dtype), v) * (largest * CODES_PER_NUMBER)
        return larger, total, out * shrink[:, None] + added
    else:
        return larger, total, out * shrink[:, None] + tl.dot(weights.to(dtype), v)


@triton.jit
def _new_token(
    k_new, kv_heads, k_slot, v_slot, k_scale_slot, v_scale_slot, q_low, q_high, cos, sin, scale,
    QUERIES: tl.constexpr, WIDTH: tl.constexpr, QUANTIZED: tl.constexpr,
):  # fmt: skip
    """Write the new key, rotated, and value to their slots; return maximum, sum and values with this token alone."""
    dtype: tl.constexpr = q_low.dtype
    half, whole = tl.arange(0, WIDTH // 2), tl.arange(0, WIDTH)
    low, high = rotated(tl.load(k_new + half), tl.load(k_new + WIDTH // 2 + half), cos, sin, dtype)
    value = tl.load(k_new + kv_heads * WIDTH + whole).to(dtype)
    if QUANTIZED:
        low, high, value = low.to(tl.float32), high.to(tl.float32), value.to(tl.float32)
        given_low, given_high, given_value = low, high, value
        code_low, code_high, k_bits, low, high = quantized(low, high)
        v_code, _, v_bits, value, _ = quantized(value, value)
        tl.store(k_slot + half, code_low)
        tl.store(k_slot + WIDTH // 2 + half, code_high)
        tl.store(v_slot + whole, v_code)
        tl.store(k_scale_slot, k_bits.to(tl.float32, bitcast=True).to(tl.bfloat16))
        tl.store(v_scale_slot, v_bits.to(tl.float32, bitcast=True).to(tl.bfloat16))
        # What is not finite is written as 0, but must show in the result.
        low, high, value = low + given_low * 0.0, high + given_high * 0.0, value + given_value * 0.0
    else:
        tl.store(k_slot + half, low)
        tl.store(k_slot + WIDTH // 2 + half, high)
        tl.store(v_slot + whole, value)
    products = q_low.to(tl.float32) * low.to(tl.float32)[None, :]
    products += q_high.to(tl.float32) * high.to(tl.float32)[None, :]
    out = tl.zeros([QUERIES, WIDTH], tl.float32) + value.to(tl.float32)[None, :]
    return tl.sum(products, axis=1) * scale, tl.full([QUERIES], 1.0, tl.float32), out


@triton.jit
def _merge(
    parts_pointer, sums_pointer, out_pointer, first_head, count, splits,
    GROUP: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, MERGED: tl.constexpr,
):  # fmt: skip
    """Add up the parts of one row's queries, `MERGED` splits at a time."""
    query, whole = tl.arange(0, QUERIES), tl.arange(0, WIDTH)
    head, used = first_head + query, query < GROUP
    most = tl.full([QUERIES], -1e30, tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    out = tl.zeros([QUERIES, WIDTH], tl.float32)
    for start in range(0, count, MERGED):
        # All loads before the first use: together they take the time of one.
        parts, sums = (), ()
        for number in tl.static_range(MERGED):
            place = head.to(tl.int64) * splits + start + number
            mask = used & (start + number < count)
            most_of_part = tl.load(sums_pointer + place * 2, mask=mask, other=-1e30, cache_modifier=".cg")
            total_of_part = tl.load(sums_pointer + place * 2 + 1, mask=mask, other=0.0, cache_modifier=".cg")
            pointers = parts_pointer + place[:, None] * WIDTH + whole[None, :]
            sums = sums + ((most_of_part, total_of_part),)
            parts = parts + (tl.load(pointers, mask=mask[:, None], other=0.0, cache_modifier=".cg"),)
        for number in tl.static_range(MERGED):
            most_of_part, total_of_part = sums[number]
            larger = tl.maximum(most, most_of_part)
            shrink, weight = tl.exp2(most - larger), tl.exp2(most_of_part - larger)
            total = total * shrink + total_of_part * weight
            out = out * shrink[:, None] + parts[number] * weight[:, None]
            most = larger
    out = out / tl.where(used, total, 1.0)[:, None]
    pointers = out_pointer + head.to(tl.int64)[:, None] * WIDTH + whole[None, :]
    tl.store(pointers, out.to(out_pointer.dtype.element_ty), mask=used[:, None])


@triton.jit
def _store(
    out_pointer, logs_pointer, parts_pointer, sums_pointer, counters_pointer, first_head, split, count, blocks, most,
    total, out, GROUP: tl.constexpr, QUERIES: tl.constexpr, MERGED_QUERIES: tl.constexpr, MERGED: tl.constexpr,
    WIDTH: tl.constexpr, SPLITS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Store a split's result: the whole row's, or a part; the last split to finish merges more than PARTS parts."""
    query, whole = tl.arange(0, QUERIES), tl.arange(0, WIDTH)
    used = query < GROUP
    head = (first_head + query).to(tl.int64)
    if count == 1:
        result = out_pointer + head[:, None] * WIDTH + whole[None, :]
        tl.store(result, (out / total[:, None]).to(out_pointer.dtype.element_ty), mask=used[:, None])
    elif blocks <= PARTS:  # as `parts_left` says
        width = tl.num_programs(0).to(tl.int64) * (GROUP * WIDTH)  # of one part
        result = out_pointer + split * width + head[:, None] * WIDTH + whole[None, :]
        tl.store(result, (out / total[:, None]).to(out_pointer.dtype.element_ty), mask=used[:, None])
        tl.store(logs_pointer + head * PARTS + split, most + tl.log2(total), mask=used)
    else:
        part = parts_pointer + (head * SPLITS + split)[:, None] * WIDTH + whole[None, :]
        tl.store(part, out, mask=used[:, None])
        tl.store(sums_pointer + (head * SPLITS + split) * 2, most, mask=used)
        tl.store(sums_pointer + (head * SPLITS + split) * 2 + 1, total, mask=used)
        tl.debug_barrier()  # every thread has stored its part before one thread says so
        finished = tl.atomic_add(counters_pointer + tl.program_id(0), 1, sem="acq_rel")
        tl.debug_barrier()
        if finished == count - 1:
            _merge(
                parts_pointer, sums_pointer, out_pointer, first_head, count, SPLITS, GROUP, WIDTH, MERGED_QUERIES,
                4 if SPLITS <= 4 else MERGED,
            )  # fmt: skip
            tl.store(counters_pointer + tl.program_id(0), 0)


@triton.jit
def _prefetch(
    next_pointer, after_pointer, next_bytes, after_bytes, split, idle, WARPS: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    """Bring this block's share of what the next two products read first into L2, if the block is `idle`."""
    thread = tl.arange(0, 32 * WARPS)
    number = (split * tl.num_programs(0) + tl.program_id(0)).to(tl.int64) + 0 * thread.to(tl.int64)
    chosen = (thread == 0) & idle
    prefetch_into_l2(next_pointer + number * next_bytes, next_bytes, chosen, PDL)
    prefetch_into_l2(after_pointer + number * after_bytes, after_bytes, chosen, PDL)


@triton.jit
def decode_attention_kernel(
    qkv_pointer, cos_pointer, sin_pointer, positions_pointer, keys_pointer, values_pointer, key_scales_pointer,
    value_scales_pointer, table_pointer, parts_pointer, sums_pointer, counters_pointer, out_pointer, logs_pointer,
    next_pointer, after_pointer, next_bytes, after_bytes, qkv_stride, outer_stride, head_stride, table_stride, page,
    window, kv_heads, scale,
    GROUP: tl.constexpr, QUERIES: tl.constexpr, MERGED_QUERIES: tl.constexpr, MERGED: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, SPLITS: tl.constexpr,
    PAGED: tl.constexpr, QUANTIZED: tl.constexpr, INLINE: tl.constexpr, PDL: tl.constexpr, PREFETCH: tl.constexpr,
    PARTS: tl.constexpr, WARPS: tl.constexpr,
):  # fmt: skip
    """See the module. `scale` includes log2(e). PARTS: 0, or for one row how many parts may be left unmerged."""
    HALF: tl.constexpr = WIDTH // 2
    dtype: tl.constexpr = out_pointer.dtype.element_ty
    row = tl.program_id(0) // kv_heads
    kv_head = tl.program_id(0) % kv_heads
    split = tl.program_id(1)
    position = tl.load(positions_pointer + row).to(tl.int32)
    start = first_block(position, window, BLOCK)
    blocks = tl.cdiv(position + 1 - start, BLOCK)
    share = tl.cdiv(blocks, SPLITS)
    count = tl.cdiv(blocks, tl.maximum(share, 1))  # splits that have any slots
    keys = keys_pointer + kv_head.to(tl.int64) * head_stride
    values = values_pointer + kv_head.to(tl.int64) * head_stride
    key_scales = key_scales_pointer + kv_head.to(tl.int64) * (head_stride // WIDTH)
    value_scales = value_scales_pointer + kv_head.to(tl.int64) * (head_stride // WIDTH)
    query = tl.arange(0, QUERIES)
    used = query < GROUP
    half, whole = tl.arange(0, HALF), tl.arange(0, WIDTH)
    first_head = (row * kv_heads + kv_head) * GROUP
    if (split == 0) & (position < 0):
        if PDL:
            gdc_wait()
        pointers = out_pointer + (first_head + query).to(tl.int64)[:, None] * WIDTH + whole[None, :]
        tl.store(pointers, tl.zeros([QUERIES, WIDTH], out_pointer.dtype.element_ty), mask=used[:, None])
    if PREFETCH:
        _prefetch(next_pointer, after_pointer, next_bytes, after_bytes, split, split >= count, WARPS, PDL)
    if split < count:
        first = start + split * share * BLOCK
        end = tl.minimum(first + share * BLOCK, position + 1)
        earliest = tl.where(window > 0, position + 1 - window, 0)
        slot = first + tl.arange(0, BLOCK)
        visible = (slot < tl.minimum(end, position)) & (slot >= earliest)
        place = _first_slot(table_pointer, row, first, table_stride, page, outer_stride, WIDTH, PAGED)
        slots = _load_slots(keys, values, key_scales, value_scales, place, visible, WIDTH, BLOCK, QUANTIZED)
        cos = tl.load(cos_pointer + position.to(tl.int64) * HALF + half)
        sin = tl.load(sin_pointer + position.to(tl.int64) * HALF + half)
        if PDL:
            gdc_wait()
            gdc_launch_dependents()
        qkv = qkv_pointer + row.to(tl.int64) * qkv_stride
        q_pointers = qkv + (kv_head * GROUP + query)[:, None] * WIDTH + half[None, :]
        q_low = tl.load(q_pointers, mask=used[:, None], other=0.0)
        q_high = tl.load(q_pointers + HALF, mask=used[:, None], other=0.0)
        q_low, q_high = rotated(q_low, q_high, cos[None, :], sin[None, :], dtype)
        most = tl.full([QUERIES], -1e30, tl.float32)
        total = tl.zeros([QUERIES], tl.float32)
        out = tl.zeros([QUERIES, WIDTH], tl.float32)
        if end == position + 1:  # this block has the new token
            there = _first_slot(table_pointer, row, position, table_stride, page, outer_stride, WIDTH, PAGED)
            most, total, out = _new_token(
                qkv + (kv_heads * GROUP + kv_head) * WIDTH, kv_heads, keys + there, values + there,
                key_scales + there // WIDTH, value_scales + there // WIDTH, q_low, q_high, cos, sin, scale, QUERIES,
                WIDTH, QUANTIZED,
            )  # fmt: skip
        most, total, out = _attend(q_low, q_high, slots, visible, most, total, out, scale, QUANTIZED, INLINE)
        for turn in range(1, tl.cdiv(end - first, BLOCK)):
            now = first + turn * BLOCK
            slot = now + tl.arange(0, BLOCK)
            visible = (slot < tl.minimum(end, position)) & (slot >= earliest)
            place = _first_slot(table_pointer, row, now, table_stride, page, outer_stride, WIDTH, PAGED)
            slots = _load_slots(keys, values, key_scales, value_scales, place, visible, WIDTH, BLOCK, QUANTIZED)
            most, total, out = _attend(q_low, q_high, slots, visible, most, total, out, scale, QUANTIZED, INLINE)
        _store(
            out_pointer, logs_pointer, parts_pointer, sums_pointer, counters_pointer, first_head, split, count, blocks,
            most, total, out, GROUP, QUERIES, MERGED_QUERIES, MERGED, WIDTH, SPLITS, PARTS,
        )  # fmt: skip
