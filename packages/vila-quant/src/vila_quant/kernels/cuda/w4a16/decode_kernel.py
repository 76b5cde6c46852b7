"""The kernel of `decode`: W4A16 for 1 to 16 tokens.

M tokens, N outputs, K inputs, g group size

**Grid.** One block for `TILES` (1 or 2) tiles of 16 outputs: many small blocks, scheduled by the hardware. The warps of
a block take turns along K, a unit of 128 inputs each, and add up at the end, so no two blocks write one output and the
order of the sum is fixed. With SWIGLU a block takes the same 16 rows of gate and of up.

**Order.** A block loads its first weights, waits for the kernel before it (programmatic dependent launch: weights are
constants, so they need no waiting), loads activations, and lets the kernel after it start. Blocks at the end of the
grid prefetch the next weight into L2.

**Attention in parts** (PARTS, one token). The columns of the product are then not tokens but the parts of one token's
attention; a unit's sums are multiplied by the parts' weights in its head, and added up at the end.
"""

# Triton has no types: a kernel's arguments and its launch are not checked.
# Compile-time constants are in capitals, tuples grow by `+`.
# ruff: noqa: N803, N806, RUF005
# pyright: reportGeneralTypeIssues=false
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportArgumentType=false, reportIndexIssue=false, reportAttributeAccessIssue=false, reportAssignmentType=false

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from vila_core.ops.attention_kernel import parts_left
from vila_core.ops.fragments import sum_over_warps
from vila_core.ops.prefetch import prefetch_into_l2
from vila_quant.kernels.cuda.w4a16.unit import (
    load_part_weights,
    load_tokens,
    load_weights,
    multiply_unit,
)


@triton.jit
def _sum_over_lanes(values, WARPS: tl.constexpr):
    """Return, in every thread, the sum of the values of its warp."""
    total = tl.sum(tl.reshape(values, (WARPS, 32)), axis=1)
    return tl.reshape(tl.broadcast_to(total[:, None], (WARPS, 32)), (32 * WARPS,))


@triton.jit
def _sum_over_quads(values, WARPS: tl.constexpr):
    """Return, in every thread, the sum of the values of four consecutive ones."""
    total = tl.sum(tl.reshape(values, (8 * WARPS, 4)), axis=1)
    return tl.reshape(tl.broadcast_to(total[:, None], (8 * WARPS, 4)), (32 * WARPS,))


@triton.jit
def _load_inputs(
    x_pointer, logs_pointer, unit, units, lane, tokens, x_stride, COLUMNS: tl.constexpr, HEAD_PARTS: tl.constexpr,
    HEAD_WIDTH: tl.constexpr, GROUPS: tl.constexpr, INLINE: tl.constexpr,
):  # fmt: skip
    """Return the thread's share of a unit's inputs, with the weights of the columns if they are parts."""
    words = load_tokens(x_pointer, unit, units, lane, tokens, x_stride, COLUMNS, INLINE)
    if HEAD_PARTS:
        words = words + load_part_weights(logs_pointer, unit, units, lane, tokens, HEAD_PARTS, HEAD_WIDTH, GROUPS)
    return words


@triton.jit
def _of_columns(
    sums, lane, ONE_TOKEN: tl.constexpr, MERGES: tl.constexpr, TILES: tl.constexpr, WARPS: tl.constexpr
):  # fmt: skip
    """Return the sums to keep: MERGES adds up columns; of one token, a row's first two threads keep one output each."""
    if MERGES:
        merged = ()
        for half in tl.static_range(2 * TILES):
            merged = merged + (_sum_over_quads(sums[2 * half] + sums[2 * half + 1], WARPS),)
        sums = merged
    if ONE_TOKEN:  # all columns are the same
        chosen = ()
        for tile in tl.static_range(TILES):
            chosen = chosen + (tl.where((lane & 1) == 1, sums[2 * tile + 1], sums[2 * tile]),)
        sums = chosen
    return sums


@triton.jit
def _place(
    value, first_tile, lane, tokens, outputs, ONE_TOKEN: tl.constexpr, COLUMNS: tl.constexpr, SIZE: tl.constexpr
):  # fmt: skip
    """Return token and output of sum `value` of `SIZE` in a thread, and whether it is to be stored."""
    if ONE_TOKEN:
        token = 0 * lane
        output = (first_tile + value) * 16 + (lane >> 2) + 8 * (lane & 1)
        mask = ((lane & 3) < 2) & (output < outputs) & (value < SIZE)
    else:
        token = 8 * (value // 4 % COLUMNS) + 2 * (lane & 3) + value % 2
        output = (first_tile + value // (4 * COLUMNS)) * 16 + (lane >> 2) + 8 * (value // 2 % 2)
        mask = (token < tokens) & (output < outputs) & (value < SIZE)
    return token, output, mask


@triton.jit
def decode_kernel(
    packed_pointer, x_pointer, bias_pointer, y_pointer, next_pointer, residual_pointer, norm_pointer, scaled_pointer,
    squares_pointer, logs_pointer, position_pointer, tokens, outputs, units, x_stride, y_stride, next_bytes, up_offset,
    partials, norm_scale, eps, window,
    HAS_BIAS: tl.constexpr, GROUPS: tl.constexpr, ONE_TOKEN: tl.constexpr, COLUMNS: tl.constexpr, TILES: tl.constexpr,
    WARPS: tl.constexpr, SLOTS: tl.constexpr, AHEAD: tl.constexpr, CHAINS: tl.constexpr, ROUNDS: tl.constexpr,
    SWIGLU: tl.constexpr, ADDS: tl.constexpr, PARTIALS: tl.constexpr, HEAD_PARTS: tl.constexpr,
    HEAD_WIDTH: tl.constexpr, HEAD_BLOCK: tl.constexpr, PDL: tl.constexpr, PREFETCH: tl.constexpr,
    INLINE: tl.constexpr,
):  # fmt: skip
    """See the module. `x_pointer` and `x_stride` count words of two numbers; `ROUNDS · SLOTS · WARPS` units cover K.

    `next_bytes`: how much of the next weight each of the last `PREFETCHING_BLOCKS` blocks fetches. ADDS and PARTIALS
    (a 32nd of `partials`, rounded up, or 0): see `Adding` and `Normed`. HEAD_PARTS: how many parts of an attention `x`
    may have, or 0; HEAD_BLOCK: slots of a part.
    """
    dtype: tl.constexpr = y_pointer.dtype.element_ty
    KEPT: tl.constexpr = 2 if ONE_TOKEN and not HEAD_PARTS else 4
    MERGES: tl.constexpr = HEAD_PARTS > 0
    UNIT_WORDS: tl.constexpr = 512 + 32 * GROUPS
    block = tl.program_id(0)
    thread = tl.arange(0, 32 * WARPS)
    lane = thread & 31
    unit = thread >> 5
    WRITTEN: tl.constexpr = 1 if SWIGLU else TILES  # tiles of outputs
    first_tile = (block * WRITTEN) % 2
    units_pointer = packed_pointer + (block * WRITTEN // 2).to(tl.int64) * units * UNIT_WORDS
    up_offset = tl.multiple_of(up_offset.to(tl.int64), 16)

    weights = ()
    for slot in tl.static_range(SLOTS):
        weights = weights + (
            load_weights(
                units_pointer, up_offset, unit + slot * WARPS, units, lane, first_tile, UNIT_WORDS, TILES, GROUPS,
                SWIGLU, INLINE,
            ),
        )  # fmt: skip
    if ADDS:  # the residual is at least two kernels old
        place = (block * WRITTEN + unit) * 16 + (lane >> 2) + 8 * (lane & 1)
        is_kept = ((lane & 3) < 2) & (place < outputs) & (unit < TILES)
        residual = tl.load(residual_pointer + place, mask=is_kept, other=0.0).to(tl.float32)
        norm_weight = tl.load(norm_pointer + place, mask=is_kept, other=0.0).to(tl.float32)
    if MERGES:  # the position is set before the step
        tokens = parts_left(tl.load(position_pointer).to(tl.int32), window, HEAD_PARTS, HEAD_BLOCK)
    if PDL:
        gdc_wait()
    x = ()
    for slot in tl.static_range(AHEAD):
        x = x + (
            _load_inputs(
                x_pointer, logs_pointer, unit + slot * WARPS, units, lane, tokens, x_stride, COLUMNS, HEAD_PARTS,
                HEAD_WIDTH, GROUPS, INLINE,
            ),
        )  # fmt: skip
    if PDL:
        gdc_launch_dependents()
    squares = tl.zeros([32 * WARPS], tl.float32)
    for part in tl.static_range(PARTIALS):  # every warp adds up all parts, which needs no barrier
        place = part * 32 + lane
        squares += tl.load(squares_pointer + place, mask=place < partials, other=0.0)
    sums = ()
    for _ in tl.static_range(TILES * COLUMNS * KEPT):
        sums = sums + (tl.zeros([32 * WARPS], tl.float32),)

    for _ in range(ROUNDS - 1):
        for _ in tl.static_range(SLOTS):
            sums = multiply_unit(
                weights[0], x[0], sums, WARPS, TILES, COLUMNS, GROUPS, CHAINS, KEPT, MERGES, dtype, INLINE
            )
            ahead = unit + AHEAD * WARPS
            x = x[1:] + (
                _load_inputs(
                    x_pointer, logs_pointer, ahead, units, lane, tokens, x_stride, COLUMNS, HEAD_PARTS, HEAD_WIDTH,
                    GROUPS, INLINE,
                ),
            )  # fmt: skip
            ahead = unit + SLOTS * WARPS
            weights = weights[1:] + (
                load_weights(
                    units_pointer, up_offset, ahead, units, lane, first_tile, UNIT_WORDS, TILES, GROUPS, SWIGLU, INLINE
                ),
            )
            unit += WARPS
    if PREFETCH:
        order = tl.num_programs(0) - 1 - block
        chosen = (thread == 0) & (order < PREFETCH)
        prefetch_into_l2(
            next_pointer + order.to(tl.int64) * next_bytes + thread.to(tl.int64) * 0, next_bytes, chosen, INLINE
        )
    for slot in tl.static_range(SLOTS):
        sums = multiply_unit(
            weights[slot], x[0], sums, WARPS, TILES, COLUMNS, GROUPS, CHAINS, KEPT, MERGES, dtype, INLINE
        )
        if slot + AHEAD < SLOTS:
            ahead = unit + (slot + AHEAD) * WARPS
            x = x[1:] + (
                _load_inputs(
                    x_pointer, logs_pointer, ahead, units, lane, tokens, x_stride, COLUMNS, HEAD_PARTS, HEAD_WIDTH,
                    GROUPS, INLINE,
                ),
            )  # fmt: skip
        else:
            x = x[1:]

    COUNT: tl.constexpr = TILES if ONE_TOKEN else TILES * COLUMNS * 4
    PARTS: tl.constexpr = 2 if SWIGLU else 1
    RESULTS: tl.constexpr = COUNT // PARTS // WARPS if COUNT // PARTS > WARPS else 1
    sums = _of_columns(sums, lane, ONE_TOKEN, MERGES, TILES, WARPS)
    results = sum_over_warps(sums, COUNT, WARPS, PARTS, INLINE)
    warp = thread >> 5
    inverse = 1.0
    if PARTIALS:
        inverse = norm_scale * tl.rsqrt(_sum_over_lanes(squares, WARPS) / (units * 128) + eps)
    for result in tl.static_range(RESULTS):
        value = warp + result * WARPS
        token, output, mask = _place(value, block * WRITTEN, lane, tokens, outputs, ONE_TOKEN, COLUMNS, COUNT // PARTS)
        y = results[result]
        if PARTIALS:
            y *= inverse
        if HAS_BIAS:
            y += tl.load(bias_pointer + output, mask=mask, other=0.0).to(tl.float32)
        if SWIGLU:
            y = y * tl.sigmoid(y) * (results[RESULTS + result] * inverse)
        if ADDS:
            total = (y.to(dtype).to(tl.float32) + residual).to(dtype)
            y = total.to(tl.float32)
            tl.store(scaled_pointer + output, (y * norm_weight).to(dtype), mask=mask)
            square = _sum_over_lanes(tl.where(mask, y * y, 0.0), WARPS)
            tl.store(squares_pointer + block * TILES + warp, square, mask=(lane == 0) & (warp < TILES))
        tl.store(y_pointer + token.to(tl.int64) * y_stride + output, y.to(dtype), mask=mask)
