"""The kernel of `panels.dequantize`: a weight in 16 bits from the packed layout, at the rate of the memory.

w[n, k] = (q[n, k] - zero) · scale, rounded to 16 bits
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

from vila_core.ops.fragments import halves, stream_words
from vila_quant.kernels.cuda.w4a16.fragments import multiply_add_halves, store_words, stream_word_pair
from vila_quant.kernels.cuda.w4a16.tiles import twice
from vila_quant.kernels.cuda.w4a16.unit import numbers, offsets

UNITS = 4
"""Units per block, whose loads are all in flight at once."""


@triton.jit
def _scaled(words, scales, dtype: tl.constexpr, INLINE: tl.constexpr):
    """Return the numbers of the low and of the high row in four words of `q - zero`: two words each."""
    nothing = tl.full(words[0].shape, -2147450880, tl.int32)  # -0.0, twice
    low = (
        multiply_add_halves(words[0], scales[0], nothing, dtype, INLINE),
        multiply_add_halves(words[2], scales[0], nothing, dtype, INLINE),
    )
    high = (
        multiply_add_halves(words[1], scales[1], nothing, dtype, INLINE),
        multiply_add_halves(words[3], scales[1], nothing, dtype, INLINE),
    )
    return low, high


@triton.jit
def dequantize_kernel(
    packed_pointer, w_pointer, units, w_stride,
    IS_FP16: tl.constexpr, GROUPS: tl.constexpr, UNITS_OF_BLOCK: tl.constexpr, INLINE: tl.constexpr,
):  # fmt: skip
    """Write 32 outputs × `UNITS_OF_BLOCK · 128` inputs; `w_pointer` and `w_stride` count words of two numbers.

    A warp does 16 outputs × 64 inputs of a unit. A thread's four words hold two rows of 8 consecutive inputs twice.
    """
    dtype: tl.constexpr = tl.float16 if IS_FP16 else tl.bfloat16
    UNIT_WORDS: tl.constexpr = 512 + 32 * GROUPS
    block = tl.program_id(1)
    thread = tl.arange(0, 128)
    lane = thread & 31
    tile, half = thread >> 6, (thread >> 5) & 1
    first = tl.program_id(0) * UNITS_OF_BLOCK
    base = packed_pointer + (block.to(tl.int64) * units + first) * UNIT_WORDS
    scale_place = 512 + half * (GROUPS // 2 * 32) + (lane >> 2) * 4 + tile * 2
    loaded = ()
    for unit in tl.static_range(UNITS_OF_BLOCK):
        valid = thread * 0 + first + unit < units
        words = stream_words(base + unit * UNIT_WORDS + thread * 4, valid, INLINE)
        words = words + stream_word_pair(base + unit * UNIT_WORDS + scale_place, valid, INLINE)
        if GROUPS == 4:
            words = words + stream_word_pair(base + unit * UNIT_WORDS + scale_place + 32, valid, INLINE)
        loaded = loaded + (words,)
    row = (block * 32 + tile * 16 + (lane >> 2)).to(tl.int64) * w_stride
    place = w_pointer + row + first * 64 + half * 32 + (lane & 3) * 4
    for unit in tl.static_range(UNITS_OF_BLOCK):
        valid = thread * 0 + first + unit < units
        words = loaded[unit]
        for part in tl.static_range(2):  # of 32 inputs
            low_word, high_word = words[4 + GROUPS // 4 * 2 * part], words[5 + GROUPS // 4 * 2 * part]
            minus_low, minus_high = offsets(low_word, high_word, dtype, INLINE)
            low_scale, _ = halves(low_word, tl.float16)
            high_scale, _ = halves(high_word, tl.float16)
            scales = (twice(low_scale, dtype), twice(high_scale, dtype))
            first_step = numbers(words[2 * part], minus_low, minus_high, dtype, INLINE)
            second_step = numbers(words[2 * part + 1], minus_low, minus_high, dtype, INLINE)
            low, high = _scaled(first_step, scales, dtype, INLINE)
            more_low, more_high = _scaled(second_step, scales, dtype, INLINE)
            here = place + unit * 64 + part * 16
            store_words(here, low + more_low, valid, INLINE)
            store_words(here + 8 * w_stride, high + more_high, valid, INLINE)
