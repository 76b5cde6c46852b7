"""W4A16 for tens to thousands of tokens: tiles of the output, the weight dequantized on the way to the tensor cores.

M tokens, N outputs, K inputs, g group size

    y[m, n] = sum_k x[m, k] · w[n, k] + bias[n],    w = (q - zero) · scale, rounded to the dtype of x

**Grid.** `BLOCK_N` outputs × `BLOCK_M` tokens a block; blocks of the same outputs follow one another, so that a weight
comes from memory once. As many tiles as fill the GPU a whole number of times take one block each. The rest, which would
leave most of the GPU idle, are split along K: their blocks write fp32 partial sums and a second kernel adds them, in
order. No atomics, and the same result every time.
"""

# Triton has no types: a kernel's arguments and its launch are not checked.
# Compile-time constants are in capitals, tuples grow by `+`.
# ruff: noqa: N803, N806, FURB136
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

from vila_core.ops.fragments import halves
from vila_quant.kernels.cuda.w4a16.fragments import multiply_add_halves, settled, take_bits
from vila_quant.kernels.cuda.w4a16.layout import UNIT_INPUTS, UNIT_OUTPUTS


@dataclass(frozen=True)
class TileConfig:
    """Sizes of a tile (outputs, tokens, inputs per step: 64 or 128) and how the tiles are spread.

    `splits`: how many blocks at most share a tile that is left over; `warps`; `stages` of loads in flight; `resident`:
    how many blocks a multiprocessor holds at a time. With 0 all tiles count as left over.
    """

    block_n: int = 128
    block_m: int = 64
    block_k: int = 128
    splits: int = 1
    warps: int = 4
    stages: int = 3
    resident: int = 0


@triton.jit
def _scaled_numbers(a, one, minus, scale, dtype: tl.constexpr, INLINE: tl.constexpr):
    """Return two numbers `(q - zero) · scale` from a word that holds their codes as `magic + q`."""
    nothing = tl.full(a.shape, -2147450880, tl.int32)  # -0.0, twice
    return halves(
        multiply_add_halves(multiply_add_halves(a, one, minus, dtype, INLINE), scale, nothing, dtype, INLINE), dtype
    )


@triton.jit
def twice(number, dtype: tl.constexpr):
    """Return a word with `number` in both halves."""
    low = number.to(dtype).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    return low | (low << 16)


@triton.jit
def load_numbers(
    packed_pointer, first_block, blocks, step, units, dtype: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUPS: tl.constexpr, WARPS: tl.constexpr, INLINE: tl.constexpr,
):  # fmt: skip
    """Return the weights `[BLOCK_N, BLOCK_K]` of outputs from `32 · first_block` on and inputs from `step · BLOCK_K`
    on.

    Inputs are in the order of the MMA operand, see `permute_tokens`: each thread holds after unpacking just what its
    tensor core wants, and nothing moves between threads.
    """
    TILES: tl.constexpr = BLOCK_N // 16
    LOW_TILES: tl.constexpr = WARPS if TILES > WARPS else TILES  # one of these for each warp
    HIGH_TILES: tl.constexpr = TILES // LOW_TILES
    HALVES: tl.constexpr = BLOCK_K // 64
    UNIT_WORDS: tl.constexpr = 512 + 32 * GROUPS
    unit = step * HALVES // 2
    first_half = step * HALVES % 2
    base = packed_pointer + (first_block.to(tl.int64) * units + unit) * UNIT_WORDS
    last = blocks - 1 - first_block  # a tile may reach past the weight: it reads the last block again

    index = tl.arange(0, TILES * 128 * HALVES)  # high tile, half, low tile, row, quad, step // 2, step % 2
    tile = index // (128 * HALVES * LOW_TILES) * LOW_TILES + index // 128 % LOW_TILES
    where = (
        tl.minimum(tile // 2, last) * (units * UNIT_WORDS)
        + tile % 2 * 256
        + index // (128 * LOW_TILES) % HALVES * 128
        + index % 128
    )
    codes = tl.reshape(tl.load(base + first_half * 128 + where), (HIGH_TILES, HALVES, LOW_TILES, 8, 4, 2, 2))

    OF_HALF: tl.constexpr = HALVES if GROUPS > 1 else 1  # distinct groups among the halves, and within one
    OF_QUARTER: tl.constexpr = 2 if GROUPS > 2 else 1
    index = tl.arange(
        0, TILES * 16 * OF_HALF * OF_QUARTER
    )  # high tile, low tile // 2, group, row, low tile % 2, high row
    where = tl.minimum(index // (32 * OF_HALF * OF_QUARTER), last) * (units * UNIT_WORDS) + index % (
        32 * OF_HALF * OF_QUARTER
    )
    pairs = tl.load(base + (512 + first_half * (GROUPS // 2) * 32) + where)
    low, high = tl.split(tl.reshape(pairs, (HIGH_TILES, LOW_TILES // 2, OF_HALF, OF_QUARTER, 8, 2, 2)))
    scale_shape: tl.constexpr = (HIGH_TILES, OF_HALF, LOW_TILES, 8, 1, OF_QUARTER, 1)
    low = tl.reshape(tl.permute(low, (0, 2, 1, 5, 4, 3)), scale_shape)
    high = tl.reshape(tl.permute(high, (0, 2, 1, 5, 4, 3)), scale_shape)
    low_scale, low_minus = halves(low, tl.float16)
    high_scale, high_minus = halves(high, tl.float16)
    shape: tl.constexpr = (HIGH_TILES, HALVES, LOW_TILES, 8, 4, 2, 2)
    one = tl.full(shape, 0x3C003C00 if dtype == tl.float16 else 0x3F803F80, tl.int32)
    low_scale = tl.broadcast_to(twice(low_scale, dtype), shape)
    high_scale = tl.broadcast_to(twice(high_scale, dtype), shape)
    if dtype == tl.float16:
        a0 = take_bits(codes, 0x000F000F, 0x64006400, INLINE)  # 1024 + q
        a1 = take_bits(codes, 0x00F000F0, 0x64006400, INLINE)  # 1024 + 16 q
        a2 = take_bits(codes >> 8, 0x000F000F, 0x64006400, INLINE)
        a3 = take_bits(codes >> 8, 0x00F000F0, 0x64006400, INLINE)
        low_minus = tl.broadcast_to(twice(low_minus, dtype), shape)
        high_minus = tl.broadcast_to(twice(high_minus.to(tl.float32) + 960.0, dtype), shape)
        high_one = tl.full(shape, 0x2C002C00, tl.int32)  # 1 / 16
    else:
        a0 = take_bits(codes, 0x000F000F, 0x43004300, INLINE)  # 128 + q
        a1 = take_bits(codes >> 4, 0x000F000F, 0x43004300, INLINE)
        a2 = take_bits(codes >> 8, 0x000F000F, 0x43004300, INLINE)
        a3 = take_bits(codes >> 12, 0x000F000F, 0x43004300, INLINE)
        low_minus = tl.broadcast_to(twice(low_minus.to(tl.float32) + 896.0, dtype), shape)
        high_minus = tl.broadcast_to(twice(high_minus.to(tl.float32) + 896.0, dtype), shape)
        high_one = one
    n0, n1 = _scaled_numbers(a0, one, low_minus, low_scale, dtype, INLINE)
    n2, n3 = _scaled_numbers(a2, one, low_minus, low_scale, dtype, INLINE)
    m0, m1 = _scaled_numbers(a1, high_one, high_minus, high_scale, dtype, INLINE)
    m2, m3 = _scaled_numbers(a3, high_one, high_minus, high_scale, dtype, INLINE)
    lower = tl.join(tl.join(n0, n2), tl.join(n1, n3))  # … pair, odd
    upper = tl.join(tl.join(m0, m2), tl.join(m1, m3))
    numbers = tl.join(lower, upper)  # high tile, half, low tile, row, quad, step // 2, step % 2, pair, odd, high row
    numbers = tl.permute(numbers, (0, 2, 9, 3, 1, 5, 6, 7, 4, 8))
    return tl.reshape(numbers, (BLOCK_N, BLOCK_K))


@triton.jit
def permute_kernel(x_pointer, permuted_pointer, tokens, inputs, x_stride, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Write the words (pairs) of every 32 inputs, in the order quad, step, pair, in the order step, pair, quad."""
    token = tl.program_id(1).to(tl.int64)
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    source = index // 16 * 16 + index % 4 * 4 + index // 8 % 2 * 2 + index // 4 % 2
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    words = tl.load(x_pointer + token * x_stride + source, mask=source < inputs, other=0)
    tl.store(permuted_pointer + token * inputs + index, words, mask=index < inputs)


@triton.jit(do_not_specialize=["tokens", "whole_tiles", "split_tiles", "steps_per_split"])
def tile_kernel(
    packed_pointer, x_pointer, bias_pointer, y_pointer, parts_pointer, tokens, outputs, blocks, units,
    whole_tiles, split_tiles,
    steps_per_split, x_stride, y_stride,
    HAS_BIAS: tl.constexpr, GROUPS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
    WARPS: tl.constexpr, SPLIT: tl.constexpr, PDL: tl.constexpr, INLINE: tl.constexpr,
):  # fmt: skip
    """The first `whole_tiles` blocks write tiles of `y`, others `parts [splits, split_tiles, BLOCK_M, BLOCK_N]`."""
    dtype: tl.constexpr = x_pointer.dtype.element_ty
    tiles_m = tl.cdiv(tokens, BLOCK_M)
    tile = tl.program_id(0)
    part = tile - whole_tiles
    is_part = part >= 0
    first = 0
    last = units * 128 // BLOCK_K
    if SPLIT:
        tile = tl.where(is_part, whole_tiles + part % split_tiles, tile)
        first = tl.where(is_part, part // split_tiles * steps_per_split, 0)
        last = tl.where(is_part, tl.minimum(first + steps_per_split, last), last)
    tile_n = tile // tiles_m
    token = tile % tiles_m * BLOCK_M + tl.arange(0, BLOCK_M)
    row = tl.minimum(token, tokens - 1).to(tl.int64) * x_stride
    x_pointers = x_pointer + row[:, None] + tl.arange(0, BLOCK_K)[None, :]
    total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    if PDL:
        gdc_wait()
    for step in range(first, last):
        x = tl.load(x_pointers + step * BLOCK_K)
        first_block = tile_n * (BLOCK_N // 32)
        w = load_numbers(
            packed_pointer, first_block, blocks, step, units, dtype, BLOCK_N, BLOCK_K, GROUPS, WARPS, INLINE
        )
        total = settled(tl.dot(w, tl.trans(x), total), INLINE)
    if PDL:
        gdc_launch_dependents()
    output = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (output < outputs)[:, None] & (token < tokens)[None, :]
    if SPLIT:
        place = tl.arange(0, BLOCK_M)[None, :] * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
        tl.store(parts_pointer + part.to(tl.int64) * (BLOCK_M * BLOCK_N) + place, total, mask=mask & is_part)
        mask = mask & (part < 0)
    if HAS_BIAS:
        total += tl.load(bias_pointer + output, mask=output < outputs, other=0.0).to(tl.float32)[:, None]
    tl.store(y_pointer + token.to(tl.int64)[None, :] * y_stride + output[:, None], total.to(dtype), mask=mask)


@triton.jit(do_not_specialize=["tokens", "whole_tiles", "split_tiles"])
def add_kernel(
    parts_pointer, bias_pointer, y_pointer, tokens, outputs, whole_tiles, split_tiles, y_stride,
    SPLITS: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Add the parts of `BLOCK` results of a tile."""
    split_tile = tl.program_id(0)
    tile = whole_tiles + split_tile
    tiles_m = tl.cdiv(tokens, BLOCK_M)
    index = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    token = tile % tiles_m * BLOCK_M + index // BLOCK_N
    output = tile // tiles_m * BLOCK_N + index % BLOCK_N
    mask = (token < tokens) & (output < outputs)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    total = tl.zeros([BLOCK], tl.float32)
    for split in tl.static_range(SPLITS):
        part = (split * split_tiles + split_tile).to(tl.int64) * (BLOCK_M * BLOCK_N)
        total += tl.load(parts_pointer + part + index, mask=mask, other=0.0)
    if HAS_BIAS:
        total += tl.load(bias_pointer + output, mask=mask, other=0.0).to(tl.float32)
    tl.store(y_pointer + token.to(tl.int64) * y_stride + output, total.to(y_pointer.dtype.element_ty), mask=mask)


def sizes(x: Tensor, packed: Tensor, y: Tensor) -> tuple[int, int, int, int]:
    """Return tokens, outputs, blocks and units of a product, after checking that its operands fit one another."""
    tokens, outputs = y.shape
    blocks, units, _ = packed.shape
    assert x.shape == (tokens, units * UNIT_INPUTS)
    assert x.stride(1) == 1
    assert y.stride(1) == 1
    assert y.dtype == x.dtype
    return tokens, outputs, blocks, units


def multiply_tiles(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    y: Tensor,
    group_size: int,
    config: TileConfig,
    *,
    multiprocessors: int,
    pdl: bool = False,
    inline: bool = True,
) -> None:
    """Write `x Wᵀ + bias` to `y`.

    Args:
        x: `[M, units · 128]` fp16 or bf16; rows aligned to 16 bytes.
        packed: the packed weight.
        bias: `[N]` in the dtype of `x`, or None.
        y: `[M, N]`, rows contiguous.
        group_size: of the weight.
        config: how to split the work.
        multiprocessors: of the GPU.
        pdl: whether a kernel may start before the one ahead of it ends (programmatic dependent launch, from sm90).
        inline: whether to use PTX instructions; False is for the interpreter.
    """
    tokens, outputs, blocks, units = sizes(x, packed, y)
    x = permute_tokens(x, pdl=pdl)
    tiles = triton.cdiv(blocks * UNIT_OUTPUTS, config.block_n) * triton.cdiv(tokens, config.block_m)
    steps = units * UNIT_INPUTS // config.block_k
    split_tiles, splits = leftover(tiles, steps, config.splits, config.resident * multiprocessors)
    whole_tiles = tiles - split_tiles
    size = config.block_m * config.block_n
    parts = x.new_empty(max(1, splits * split_tiles * size), dtype=torch.float32)
    launch = {"launch_pdl": True} if pdl else {}
    given = y if bias is None else bias
    tile_kernel[(whole_tiles + split_tiles * splits,)](
        packed, x, given, y, parts, tokens, outputs, blocks, units, whole_tiles, split_tiles, triton.cdiv(steps,
        splits), x.stride(0), y.stride(0), HAS_BIAS=bias is not None, GROUPS=UNIT_INPUTS // group_size,
        BLOCK_N=config.block_n, BLOCK_M=config.block_m, BLOCK_K=config.block_k, WARPS=config.warps, SPLIT=split_tiles >
        0, PDL=pdl, INLINE=inline, num_warps=config.warps, num_stages=config.stages, **launch,
    )  # fmt: skip
    if split_tiles:
        add_parts(parts, bias, y, whole_tiles, split_tiles, splits, config.block_n, config.block_m, pdl=pdl)


def add_parts(
    parts: Tensor,
    bias: Tensor | None,
    y: Tensor,
    whole_tiles: int,
    split_tiles: int,
    splits: int,
    block_n: int,
    block_m: int,
    *,
    pdl: bool = False,
) -> None:
    """Write the tiles of `y [M, N]` from `whole_tiles` on, sums of `parts [splits, split_tiles, block_m, block_n]`."""
    launch = {"launch_pdl": True} if pdl else {}
    step = min(block_m * block_n, 1024)
    add_kernel[(split_tiles, block_m * block_n // step)](
        parts, y if bias is None else bias, y, y.shape[0], y.shape[1], whole_tiles, split_tiles, y.stride(0),
        SPLITS=splits, HAS_BIAS=bias is not None, BLOCK_N=block_n, BLOCK_M=block_m, BLOCK=step, PDL=pdl,
        num_warps=4, **launch,
    )  # fmt: skip


def leftover(tiles: int, steps: int, splits: int, wave: int, waves: int = 1) -> tuple[int, int]:
    """Return how many of the tiles are split along K, and into how many parts; (0, 1) if none.

    Args:
        tiles: in all.
        steps: of a tile along K.
        splits: parts at most.
        wave: how many tiles the GPU works on at a time; 0: all tiles count as left over.
        waves: over how many waves the parts may spread.
    """
    left = tiles % wave if wave else tiles
    most = min(splits, steps, max(1, waves * wave // left) if wave and left else steps)
    parts = -(-steps // -(-steps // most))  # none is empty
    return (left, parts) if left and parts > 1 else (0, 1)


def permute_tokens(x: Tensor, *, pdl: bool = False) -> Tensor:
    """Return `x [M, K]` with every 32 inputs in the order of the MMA operand.

    Of four consecutive inputs a thread needs the first two for one half of an operand, the last two for the other.
    """
    tokens, inputs = x.shape
    permuted = x.new_empty(tokens, inputs)
    launch = {"launch_pdl": True} if pdl else {}
    permute_kernel[(triton.cdiv(inputs // 2, 1024), tokens)](
        x.view(torch.int32), permuted.view(torch.int32), tokens, inputs // 2, x.stride(0) // 2,
        BLOCK=1024, PDL=pdl, num_warps=4, **launch,
    )  # fmt: skip
    return permuted
