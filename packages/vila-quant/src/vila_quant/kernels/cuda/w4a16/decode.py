"""W4A16 for 1 to 16 tokens: reading the weight is nearly all of the work.

M tokens, N outputs, K inputs, g group size

    y[m, n] = sum_k x[m, k] · (q[n, k] - zero[n, k // g]) · scale[n, k // g] + bias[n]

**Grid.** One block for `TILES` (1 or 2) tiles of 16 outputs: many small blocks, scheduled by the hardware. The warps of
a block take turns along K, a unit of 128 inputs each, and add up at the end, so no two blocks write one output and the
order of the sum is fixed.

**Arithmetic.** The weight is the 16-row operand of `mma.m16n8k16`, tokens are the 8 columns. Codes become numbers with
one `lop3` (q under the exponent of 1024, or of 128 in bf16) and one `fma` that takes the zero point off, exactly;
scales multiply the fp32 sums of a group. With SWIGLU a block takes the same 16 rows of gate and of up.

**Order.** A block loads its first weights, waits for the kernel before it (programmatic dependent launch: weights are
constants, so they need no waiting), loads activations, and lets the kernel after it start. Blocks at the end of the
grid prefetch the next weight into L2.
"""

# Triton has no types: a kernel's arguments and its launch are not checked.
# Compile-time constants are in capitals, tuples grow by `+`.
# ruff: noqa: N803, N806, RUF005
# pyright: reportGeneralTypeIssues=false
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportArgumentType=false, reportIndexIssue=false, reportAttributeAccessIssue=false, reportAssignmentType=false

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from vila_core.ops.prefetch import prefetch_into_l2
from vila_quant.kernels.cuda.w4a16.fragments import (
    load_words,
    mma,
    multiply_add_halves,
    stream_word_pair,
    stream_words,
    sum_over_warps,
    take_bits,
)
from vila_quant.kernels.cuda.w4a16.layout import UNIT_INPUTS, UNIT_OUTPUTS

MAX_TOKENS = 16
PREFETCHING_BLOCKS = 264


@dataclass(frozen=True)
class DecodeConfig:
    """How a block works.

    `tiles` of 16 outputs (1 or 2), `warps` that split K, units in flight per warp (`slots`), units of activations
    loaded ahead, a cap on registers (0: none), how many MMAs of a group are independent, and bytes of the next weight
    to prefetch."""

    tiles: int = 1
    warps: int = 8
    slots: int = 2
    ahead: int = 2
    registers: int = 0
    chains: int = 2
    prefetch: int = 3 << 20


@dataclass(frozen=True)
class Normed:
    """The input of a linear is `h · weight`, and is still to be multiplied by `scale / sqrt(mean(h²) + eps)`.

    `squares` are parts of the sum of h², one for each 16 elements. Since the linear is linear,
    the factor is applied to its result, and the norm takes no kernel of its own.
    """

    squares: Tensor
    scale: float
    eps: float


@dataclass(frozen=True)
class Adding:
    """The result is added to a residual: `h = residual + x Wᵀ`. One token.

    Also written, for `Normed`: `scaled = h · weight`, `[1, N]`, and parts of the sum of h², `squares`.
    """

    residual: Tensor
    weight: Tensor
    scaled: Tensor
    squares: Tensor


def num_parts(packed: Tensor) -> int:
    """Return how many parts `Adding.squares` has."""
    return packed.shape[0] * 2


@triton.jit
def _numbers(word, minus_low, minus_high, dtype: tl.constexpr, INLINE: tl.constexpr):
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
def _offsets(low, high, dtype: tl.constexpr, INLINE: tl.constexpr):
    """Return what `_numbers` adds to the codes of the low and of the high row, from the words with their scales."""
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
def _sum_over_lanes(values, WARPS: tl.constexpr):
    """Return, in every thread, the sum of the values of its warp."""
    total = tl.sum(tl.reshape(values, (WARPS, 32)), axis=1)
    return tl.reshape(tl.broadcast_to(total[:, None], (WARPS, 32)), (32 * WARPS,))


@triton.jit
def _load_weights(
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
def _load_tokens(x_pointer, unit, units, lane, tokens, x_stride, COLUMNS: tl.constexpr, INLINE: tl.constexpr):
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
def _multiply_unit(
    weights, x, sums, WARPS: tl.constexpr, TILES: tl.constexpr, COLUMNS: tl.constexpr, GROUPS: tl.constexpr,
    CHAINS: tl.constexpr,
    KEPT: tl.constexpr, dtype: tl.constexpr, INLINE: tl.constexpr,
):  # fmt: skip
    """Return `sums` with the products of one unit added: `KEPT` numbers for every tile and column."""
    codes, scales = weights
    zero = tl.zeros([32 * WARPS], tl.float32)
    steps: tl.constexpr = 8 // GROUPS
    for tile in tl.static_range(TILES):
        for group in tl.static_range(GROUPS):
            scale_low = scales[2 * (TILES * group + tile)]
            scale_high = scales[2 * (TILES * group + tile) + 1]
            minus_low, minus_high = _offsets(scale_low, scale_high, dtype, INLINE)
            chains = ()
            for _ in tl.static_range(CHAINS * COLUMNS):
                chains = chains + ((zero, zero, zero, zero),)
            for step in tl.static_range(steps):
                a = _numbers(codes[8 * tile + group * steps + step], minus_low, minus_high, dtype, INLINE)
                for column in tl.static_range(COLUMNS):
                    b0 = x[16 * column + 2 * (group * steps + step)]
                    b1 = x[16 * column + 2 * (group * steps + step) + 1]
                    chains = chains[1:] + (mma(chains[0], a, b0, b1, WARPS, dtype, INLINE),)
            low, high = _scale(scale_low), _scale(scale_high)
            sums = sums[: tile * COLUMNS * KEPT] + _scaled(sums, chains, low, high, tile, TILES, COLUMNS, CHAINS, KEPT)
    return sums


@triton.jit
def _scaled(
    sums,
    chains,
    low,
    high,
    tile: tl.constexpr,
    TILES: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHAINS: tl.constexpr,
    KEPT: tl.constexpr,
):
    """Return the sums from `tile` on, this tile's with `scale · (sum of the chains)` added."""
    added = ()
    for column in tl.static_range(COLUMNS):
        for kept in tl.static_range(KEPT):
            total = chains[column][kept * (4 // KEPT)]
            for chain in tl.static_range(1, CHAINS):
                total += chains[chain * COLUMNS + column][kept * (4 // KEPT)]
            scale = low if 2 * kept < KEPT else high
            added = added + (sums[(tile * COLUMNS + column) * KEPT + kept] + scale * total,)
    return added + sums[(tile + 1) * COLUMNS * KEPT :]


@triton.jit
def decode_kernel(
    packed_pointer, x_pointer, bias_pointer, y_pointer, next_pointer, residual_pointer, norm_pointer, scaled_pointer,
    squares_pointer, tokens, outputs, units, x_stride, y_stride, next_bytes, up_offset, partials, norm_scale, eps,
    HAS_BIAS: tl.constexpr, GROUPS: tl.constexpr, ONE_TOKEN: tl.constexpr, COLUMNS: tl.constexpr, TILES: tl.constexpr,
    WARPS: tl.constexpr, SLOTS: tl.constexpr, AHEAD: tl.constexpr, CHAINS: tl.constexpr, ROUNDS: tl.constexpr,
    SWIGLU: tl.constexpr, ADDS: tl.constexpr, PARTIALS: tl.constexpr, PDL: tl.constexpr, PREFETCH: tl.constexpr,
    INLINE: tl.constexpr,
):  # fmt: skip
    """See the module. `x_pointer` and `x_stride` count words of two numbers; `ROUNDS · SLOTS · WARPS` units cover K.

    `next_bytes`: how much of the next weight each of the last `PREFETCHING_BLOCKS` blocks fetches. ADDS and PARTIALS
    (a 32nd of `partials`, rounded up, or 0): see `Adding` and `Normed`.
    """
    dtype: tl.constexpr = y_pointer.dtype.element_ty
    KEPT: tl.constexpr = 2 if ONE_TOKEN else 4
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
            _load_weights(
                units_pointer,
                up_offset,
                unit + slot * WARPS,
                units,
                lane,
                first_tile,
                UNIT_WORDS,
                TILES,
                GROUPS,
                SWIGLU,
                INLINE,
            ),
        )
    if ADDS:  # the residual is at least two kernels old
        place = (block * WRITTEN + unit) * 16 + (lane >> 2) + 8 * (lane & 1)
        is_kept = ((lane & 3) < 2) & (place < outputs) & (unit < TILES)
        residual = tl.load(residual_pointer + place, mask=is_kept, other=0.0).to(tl.float32)
        norm_weight = tl.load(norm_pointer + place, mask=is_kept, other=0.0).to(tl.float32)
    if PDL:
        gdc_wait()
    x = ()
    for slot in tl.static_range(AHEAD):
        x = x + (_load_tokens(x_pointer, unit + slot * WARPS, units, lane, tokens, x_stride, COLUMNS, INLINE),)
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
            sums = _multiply_unit(weights[0], x[0], sums, WARPS, TILES, COLUMNS, GROUPS, CHAINS, KEPT, dtype, INLINE)
            ahead = unit + AHEAD * WARPS
            x = x[1:] + (_load_tokens(x_pointer, ahead, units, lane, tokens, x_stride, COLUMNS, INLINE),)
            ahead = unit + SLOTS * WARPS
            weights = weights[1:] + (
                _load_weights(
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
        sums = _multiply_unit(weights[slot], x[0], sums, WARPS, TILES, COLUMNS, GROUPS, CHAINS, KEPT, dtype, INLINE)
        if slot + AHEAD < SLOTS:
            ahead = unit + (slot + AHEAD) * WARPS
            x = x[1:] + (_load_tokens(x_pointer, ahead, units, lane, tokens, x_stride, COLUMNS, INLINE),)
        else:
            x = x[1:]

    if ONE_TOKEN:  # all columns are the same: let a row's first two threads store its two outputs
        chosen = ()
        for tile in tl.static_range(TILES):
            chosen = chosen + (tl.where((lane & 1) == 1, sums[2 * tile + 1], sums[2 * tile]),)
        sums = chosen
    COUNT: tl.constexpr = TILES if ONE_TOKEN else TILES * COLUMNS * 4
    PARTS: tl.constexpr = 2 if SWIGLU else 1
    RESULTS: tl.constexpr = COUNT // PARTS // WARPS if COUNT // PARTS > WARPS else 1
    results = sum_over_warps(sums, COUNT, WARPS, PARTS, INLINE)
    warp = thread >> 5
    inverse = 1.0
    if PARTIALS:
        inverse = norm_scale * tl.rsqrt(_sum_over_lanes(squares, WARPS) / (units * 128) + eps)
    for result in tl.static_range(RESULTS):
        value = (thread >> 5) + result * WARPS
        if ONE_TOKEN:
            token = 0 * lane
            output = (block * WRITTEN + value) * 16 + (lane >> 2) + 8 * (lane & 1)
            mask = ((lane & 3) < 2) & (output < outputs) & (value < COUNT // PARTS)
        else:
            token = 8 * (value // 4 % COLUMNS) + 2 * (lane & 3) + value % 2
            output = (block * WRITTEN + value // (4 * COLUMNS)) * 16 + (lane >> 2) + 8 * (value // 2 % 2)
            mask = (token < tokens) & (output < outputs) & (value < COUNT // PARTS)
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


def decode(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    y: Tensor,
    group_size: int,
    config: DecodeConfig,
    *,
    next_packed: Tensor | None = None,
    swiglu: bool = False,
    normed: Normed | None = None,
    adding: Adding | None = None,
    pdl: bool = False,
    inline: bool = True,
) -> None:
    """Write `x Wᵀ + bias` to `y`, or with `swiglu` `silu(x W_gateᵀ) · (x W_upᵀ)`.

    Args:
        x: `[M, units · 128]` fp16 or bf16, M from 1 to 16; rows aligned to 16 bytes.
        packed: the packed weight; for `swiglu` those of gate and up, one after the other.
        bias: `[N]` in the dtype of `x`, or None.
        y: `[M, N]`, rows contiguous.
        group_size: of the weight.
        config: how to split the work; `swiglu` takes 2 tiles.
        next_packed: the weight that the next kernel reads, of which `config.prefetch` bytes are prefetched into L2.
        normed: what is left to do of the norm of `x`; one token, and K is not padded.
        adding: what the result is added to; `y` becomes h.
        swiglu: whether `packed` holds two weights, the gate first, each a whole number of units.
        pdl: whether a kernel may start before the one ahead of it ends (programmatic dependent launch, from sm90).
        inline: whether to use PTX instructions; False is for the interpreter.
    """
    tokens, outputs = y.shape
    blocks, units, _ = packed.shape
    if swiglu:
        assert config.tiles == 2
        assert bias is None
        assert blocks * UNIT_OUTPUTS == 2 * outputs
    assert x.shape == (tokens, units * UNIT_INPUTS)
    assert 1 <= tokens <= MAX_TOKENS
    assert x.stride(1) == 1
    assert x.stride(0) % 8 == 0
    assert y.stride(1) == 1
    assert y.dtype == x.dtype
    assert tokens == 1 or (normed is None and adding is None)
    grid = blocks * 2 // config.tiles
    if adding is not None:
        assert len(adding.squares) == num_parts(packed)
        assert adding.residual.is_contiguous()
        assert not swiglu
    squares = y if adding is None else adding.squares
    squares = squares if normed is None else normed.squares
    prefetching = min(grid, PREFETCHING_BLOCKS) if next_packed is not None and config.prefetch and pdl else 0
    following = packed if next_packed is None else next_packed
    next_bytes = min(config.prefetch, following.nbytes) // prefetching // 16 * 16 if prefetching else 0
    options = {"maxnreg": config.registers} if config.registers else {}
    if pdl:
        options["launch_pdl"] = True
    decode_kernel[(grid,)](
        packed, x.view(torch.int32), y if bias is None else bias, y, following.view(torch.uint8),
        *((y, y, y) if adding is None else (adding.residual, adding.weight, adding.scaled)), squares,
        tokens, outputs, units, x.stride(0) // 2, y.stride(0), next_bytes, packed.numel() // 2,
        *((0, 1.0, 0.0) if normed is None else (len(normed.squares), normed.scale, normed.eps)),
        HAS_BIAS=bias is not None, GROUPS=UNIT_INPUTS // group_size, ONE_TOKEN=tokens == 1,
        COLUMNS=1 if tokens <= 8 else 2,
        TILES=config.tiles, WARPS=config.warps, SLOTS=config.slots, AHEAD=min(config.ahead, config.slots),
        CHAINS=config.chains, ROUNDS=triton.cdiv(units, config.slots * config.warps), SWIGLU=swiglu,
        ADDS=adding is not None, PARTIALS=0 if normed is None else triton.cdiv(len(normed.squares), 32), PDL=pdl,
        PREFETCH=prefetching, INLINE=inline,
        num_warps=config.warps, num_stages=1, **options,
    )  # fmt: skip
