"""One unit of a W4A16 product for few tokens, 32 outputs × 128 inputs: a warp multiplies one or two tiles of 16.

M tokens, g group size

The weight is the 16-row operand of `mma.m16n8k16`, tokens are the 8 columns. Codes become numbers with one `lop3` (q
under the exponent of 1024, or of 128 in bf16) and one `fma` that takes the zero point off, exactly; scales multiply the
fp32 sums of a group. Values are tensors of one element per thread, see `vila_core.ops.fragments`.
"""

# Triton has no types: a kernel's arguments and its launch are not checked.
# Compile-time constants are in capitals, tuples grow by `+`.
# ruff: noqa: N803, RUF005
# pyright: reportGeneralTypeIssues=false
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportArgumentType=false, reportIndexIssue=false, reportAttributeAccessIssue=false, reportAssignmentType=false

from __future__ import annotations

import triton
import triton.language as tl

from vila_core.ops.fragments import mma, stream_words
from vila_quant.kernels.cuda.w4a16.fragments import load_words, multiply_add_halves, stream_word_pair, take_bits


@triton.jit
def numbers(word, minus_low, minus_high, dtype: tl.constexpr, INLINE: tl.constexpr):
    """Return the A operand in a word of codes: four words of two numbers `q - zero`."""
    if dtype == tl.float16:
        low, high = word, word >> 8
        one = tl.full(word.shape, 0x3C003C00, tl.int32)
        sixteenth = tl.full(word.shape, 0x2C002C00, tl.int32)
        a0 = take_bits(low, 0x000F000F, 0x64006400, INLINE)  # 1024 + q
        a1 = take_bits(low, 0x00F000F0, 0x64006400, INLINE)  # 1024 + 16 q
        a2 = take_bits(high, 0x000F000F, 0x64006400, INLINE)
        a3 = take_bits(high, 0x00F000F0, 0x64006400, INLINE)
        return (
            multiply_add_halves(a0, one, minus_low, dtype, INLINE),
            multiply_add_halves(a1, sixteenth, minus_high, dtype, INLINE),
            multiply_add_halves(a2, one, minus_low, dtype, INLINE),
            multiply_add_halves(a3, sixteenth, minus_high, dtype, INLINE),
        )
    else:
        one = tl.full(word.shape, 0x3F803F80, tl.int32)
        a0 = take_bits(word, 0x000F000F, 0x43004300, INLINE)  # 128 + q
        a1 = take_bits(word >> 4, 0x000F000F, 0x43004300, INLINE)
        a2 = take_bits(word >> 8, 0x000F000F, 0x43004300, INLINE)
        a3 = take_bits(word >> 12, 0x000F000F, 0x43004300, INLINE)
        return (
            multiply_add_halves(a0, one, minus_low, dtype, INLINE),
            multiply_add_halves(a1, one, minus_high, dtype, INLINE),
            multiply_add_halves(a2, one, minus_low, dtype, INLINE),
            multiply_add_halves(a3, one, minus_high, dtype, INLINE),
        )


@triton.jit
def offsets(low, high, dtype: tl.constexpr, INLINE: tl.constexpr):
    """Return what `numbers` adds to the codes of the low and of the high row, from the words with their scales."""
    if dtype == tl.float16:
        minus_low = (low & -65536) | ((low >> 16) & 0xFFFF)  # -(1024 + zero), twice
        minus_high = (high & -65536) | ((high >> 16) & 0xFFFF)
        one = tl.full(low.shape, 0x3C003C00, tl.int32)
        back = tl.full(low.shape, 0x63806380, tl.int32)  # 960: -(64 + zero), for 64 + q
        return minus_low, multiply_add_halves(minus_high, one, back, dtype, INLINE)
    else:
        return _offset_bf16(low), _offset_bf16(high)


@triton.jit
def _offset_bf16(word):
    """Return -(128 + zero) in bf16, twice."""
    minus = (word >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32) + 896.0
    upper = minus.to(tl.int32, bitcast=True) & -65536  # the value has at most 8 significant bits: no rounding
    return upper | ((upper >> 16) & 0xFFFF)


@triton.jit
def _scale(word):
    return word.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def load_weights(
    units_pointer, up_offset, unit, units, lane, first_tile, UNIT_WORDS: tl.constexpr, TILES: tl.constexpr,
    GROUPS: tl.constexpr, SWIGLU: tl.constexpr, INLINE: tl.constexpr,
):  # fmt: skip
    """Return the thread's share of one unit: `TILES · 8` words of codes, `TILES · 2` of scales a group.

    SWIGLU: the second tile is `up_offset` words after the first.
    """
    valid = unit < units
    base = units_pointer + unit.to(tl.int64) * UNIT_WORDS
    codes = ()
    for block in tl.static_range(2 * TILES):
        here = base + (first_tile * 256 + (block % 2 if SWIGLU else block) * 128 + lane * 4)
        if SWIGLU and block >= 2:
            here += up_offset
        codes = codes + stream_words(here, valid, INLINE)
    scales = ()
    for group in tl.static_range(GROUPS):
        here = base + (512 + group * 32 + (lane >> 2) * 4 + first_tile * 2)
        if SWIGLU:
            scales = scales + stream_word_pair(here, valid, INLINE)
            scales = scales + stream_word_pair(here + up_offset, valid, INLINE)
        elif TILES == 2:
            scales = scales + stream_words(here, valid, INLINE)
        else:
            scales = scales + stream_word_pair(here, valid, INLINE)
    return codes, scales


@triton.jit
def load_tokens(x_pointer, unit, units, lane, tokens, x_stride, COLUMNS: tl.constexpr, INLINE: tl.constexpr):
    """Return the thread's share of 128 inputs of `8 · COLUMNS` tokens: 16 words of each column tile."""
    start = tl.minimum(unit, units - 1) * 64 + (lane & 3) * 4
    words = ()
    for column in tl.static_range(COLUMNS):
        token = tl.minimum((lane >> 2) + 8 * column, tokens - 1)
        row = x_pointer + token.to(tl.int64) * x_stride + start
        for part in tl.static_range(4):
            words = words + load_words(row + part * 16, INLINE)
    return words


@triton.jit
def load_part_weights(
    logs_pointer, unit, units, lane, count,
    PARTS: tl.constexpr, WIDTH: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """Return the weights of the thread's two columns in a unit, for each group: how much of a head a part counts for.

    `logs_pointer [H, PARTS]`, of which the first `count` parts are read; a single part counts fully. See `SplitHeads`.
    """
    weights = ()
    for group in tl.static_range(GROUPS):
        head = (tl.minimum(unit, units - 1) * 128 + group * (128 // GROUPS)) // WIDTH
        logs = ()
        most = tl.zeros(lane.shape, tl.float32) - 1e30
        for part in tl.static_range(PARTS):
            log = tl.load(
                logs_pointer + head * PARTS + part, mask=(part < count) & (count > 1) & (head >= 0), other=-1e30
            )
            logs = logs + (log,)
            most = tl.maximum(most, log)
        total = tl.zeros(lane.shape, tl.float32)
        even = tl.zeros(lane.shape, tl.float32)
        odd = tl.zeros(lane.shape, tl.float32)
        for part in tl.static_range(PARTS):
            weight = tl.where((part < count) & (count > 1), tl.exp2(logs[part] - most), 0.0)
            if part == 0:
                weight = tl.where(count > 1, weight, 1.0)
            total += weight
            if part % 2 == 0:
                even = tl.where((lane & 3) * 2 == part, weight, even)
            else:
                odd = tl.where((lane & 3) * 2 + 1 == part, weight, odd)
        weights = weights + (even / total, odd / total)
    return weights


@triton.jit
def multiply_unit(
    weights, x, sums, WARPS: tl.constexpr, TILES: tl.constexpr, COLUMNS: tl.constexpr, GROUPS: tl.constexpr,
    CHAINS: tl.constexpr, KEPT: tl.constexpr, MERGES: tl.constexpr, dtype: tl.constexpr, INLINE: tl.constexpr,
):  # fmt: skip
    """Return `sums` with the products of one unit added: `KEPT` numbers for every tile and column.

    MERGES: behind the words of `x` are the weights of the columns, see `load_part_weights`.
    """
    codes, scales = weights
    zero = tl.zeros([32 * WARPS], tl.float32)
    steps: tl.constexpr = 8 // GROUPS
    for tile in tl.static_range(TILES):
        for group in tl.static_range(GROUPS):
            scale_low = scales[2 * (TILES * group + tile)]
            scale_high = scales[2 * (TILES * group + tile) + 1]
            minus_low, minus_high = offsets(scale_low, scale_high, dtype, INLINE)
            chains = ()
            for _ in tl.static_range(CHAINS * COLUMNS):
                chains = chains + ((zero, zero, zero, zero),)
            for step in tl.static_range(steps):
                a = numbers(codes[8 * tile + group * steps + step], minus_low, minus_high, dtype, INLINE)
                for column in tl.static_range(COLUMNS):
                    b0 = x[16 * column + 2 * (group * steps + step)]
                    b1 = x[16 * column + 2 * (group * steps + step) + 1]
                    chains = chains[1:] + (mma(chains[0], a, b0, b1, WARPS, dtype, INLINE),)
            low, high = _scale(scale_low), _scale(scale_high)
            even, odd = low, low
            if MERGES:
                even, odd = x[16 + 2 * group], x[16 + 2 * group + 1]
            added = _scaled(sums, chains, low, high, even, odd, tile, TILES, COLUMNS, CHAINS, KEPT, MERGES)
            sums = sums[: tile * COLUMNS * KEPT] + added
    return sums


@triton.jit
def _scaled(
    sums, chains, low, high, even, odd, tile: tl.constexpr, TILES: tl.constexpr, COLUMNS: tl.constexpr,
    CHAINS: tl.constexpr, KEPT: tl.constexpr, MERGES: tl.constexpr,
):  # fmt: skip
    """Return the sums from `tile` on, this tile's with `scale · (sum of the chains)` added.

    MERGES: times the weight of the column. What a part without weight holds may be anything, NaN included.
    """
    added = ()
    for column in tl.static_range(COLUMNS):
        for kept in tl.static_range(KEPT):
            total = chains[column][kept * (4 // KEPT)]
            for chain in tl.static_range(1, CHAINS):
                total += chains[chain * COLUMNS + column][kept * (4 // KEPT)]
            scale = low if 2 * kept < KEPT else high
            if MERGES:
                weight = even if kept % 2 == 0 else odd
                total = tl.where(weight > 0, weight * total, 0.0)
            added = added + (sums[(tile * COLUMNS + column) * KEPT + kept] + scale * total,)
    return added + sums[(tile + 1) * COLUMNS * KEPT :]
