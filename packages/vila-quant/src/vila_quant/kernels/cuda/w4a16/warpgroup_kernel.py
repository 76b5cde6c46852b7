"""The kernel of `warpgroups`, in Gluon: tiles of the output on Hopper's asynchronous tensor cores.

A block walks over its tiles without a break. Its eight warps turn codes into the left operand, in registers, while the
tensor cores multiply the step before it; activations come through TMA several steps ahead and codes a unit (two steps)
ahead, also across the border between two tiles.
"""

# Gluon has no types: a kernel's arguments and its launch are not checked.
# Compile-time constants are in capitals, tuples grow by `+`.
# ruff: noqa: N803, N806
# pyright: reportGeneralTypeIssues=false
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportArgumentType=false, reportIndexIssue=false, reportAttributeAccessIssue=false, reportAssignmentType=false

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

WARPS = gl.constexpr(8)
BLOCK_N = gl.constexpr(128)
"""Outputs of a tile: 16 for each warp."""

STEP = gl.constexpr(64)
"""Inputs of a step, half a unit: a row of activations is then 128 bytes, which TMA swizzles."""

THREADS = gl.constexpr(gl.DistributedLinearLayout([], [[1], [2], [4], [8], [16]], [[32], [64], [128]], [], [256]))
"""The layout of `[256]`, one element in each thread."""


@gluon.jit
def _load_codes(pointer):
    return gl.inline_asm_elementwise(
        "ld.global.L1::no_allocate.v4.b32 {$0,$1,$2,$3}, [$4];", "=r,=r,=r,=r,l", [pointer],
        dtype=(gl.int32, gl.int32, gl.int32, gl.int32), is_pure=False, pack=1,
    )  # fmt: skip


@gluon.jit
def _load_scales(pointer):
    return gl.inline_asm_elementwise(
        "ld.global.v2.b32 {$0,$1}, [$2];", "=r,=r,l", [pointer],
        dtype=(gl.int32, gl.int32), is_pure=False, pack=1,
    )  # fmt: skip


@gluon.jit
def load_unit(packed_pointer, state, blocks, units, GROUPS: gl.constexpr):
    """Return the thread's share of a unit of 128 inputs: eight words of codes, then two of scales for each group."""
    UNIT_WORDS: gl.constexpr = 512 + 32 * GROUPS
    _, tile_n, _, unit, _ = state
    first_block = tile_n * (BLOCK_N // 32)
    base = packed_pointer + (first_block.to(gl.int64) * units + unit) * UNIT_WORDS
    thread = gl.arange(0, 256, layout=THREADS)
    tile, lane = thread // 32, thread % 32
    # A tile may reach past the weight: it reads the last block again.
    block = gl.minimum(tile // 2, blocks - 1 - first_block) * (units * UNIT_WORDS)
    codes = base + (block + tile % 2 * 256 + lane * 4)
    words = _load_codes(codes) + _load_codes(codes + 128)
    scales = base + (block + 512 + tile % 2 * 2 + lane // 4 * 4)
    for group in gl.static_range(GROUPS):
        words = words + _load_scales(scales + 32 * group)
    return words


@gluon.jit
def _natural_order(even, odd, upper_pair, selectors):
    """Return two words that hold a thread's codes in the natural order of the inputs.

    A word of the packed layout holds consecutive inputs; its operand of the MMA has them two by two over the four
    threads of a row. Those four transpose their 4 × 4 pairs: first words between threads two apart, then pairs.
    """
    return gl.inline_asm_elementwise(
        "{ .reg .b32 s, r, x, y; .reg .pred p; setp.ne.b32 p, $4, 0;\n"
        "selp.b32 s, $2, $3, p; shfl.sync.bfly.b32 r, s, 2, 31, -1; selp.b32 x, r, $2, p; selp.b32 y, $3, r, p;\n"
        "prmt.b32 s, x, y, $5; shfl.sync.bfly.b32 r, s, 1, 31, -1; prmt.b32 $0, x, r, $6; prmt.b32 $1, y, r, $7; }",
        "=&r,=&r,r,r,r,r,r,r", [even, odd, upper_pair, selectors[0], selectors[1], selectors[2]],
        dtype=(gl.int32, gl.int32), is_pure=False, pack=1,
    )  # fmt: skip


@gluon.jit
def _fp16_factors(low, high):
    """Return -(1024 + zero), -(64 + zero) and the scales, each twice in a word, of the low and of the high row."""
    return gl.inline_asm_elementwise(
        "{ .reg .b32 m; prmt.b32 $0, $4, $4, 0x3232; prmt.b32 $2, $4, $4, 0x1010; prmt.b32 $3, $5, $5, 0x1010;\n"
        "prmt.b32 m, $5, $5, 0x3232; add.rn.f16x2 $1, m, $6; }",
        "=&r,=&r,=&r,=&r,r,r,r", [low, high, gl.full(low.shape, 0x63806380, gl.int32, low.type.layout)],
        dtype=(gl.int32, gl.int32, gl.int32, gl.int32), is_pure=True, pack=1,
    )  # fmt: skip


@gluon.jit
def _fp16_numbers(word, factors):
    """Return the operand in a word of codes: `(q - zero) · scale`, four words of two numbers."""
    sixteenth = gl.full(word.shape, 0x2C002C00, gl.int32, word.type.layout)
    return gl.inline_asm_elementwise(
        "{ .reg .b32 w, a, b, c, d;\n"
        "shr.u32 w, $4, 8;\n"
        "lop3.b32 a, $4, 0x000F000F, 0x64006400, 0xea; lop3.b32 b, $4, 0x00F000F0, 0x64006400, 0xea;\n"
        "lop3.b32 c, w, 0x000F000F, 0x64006400, 0xea; lop3.b32 d, w, 0x00F000F0, 0x64006400, 0xea;\n"
        "add.rn.f16x2 a, a, $5; fma.rn.f16x2 b, b, $9, $6; add.rn.f16x2 c, c, $5; fma.rn.f16x2 d, d, $9, $6;\n"
        "mul.rn.f16x2 $0, a, $7; mul.rn.f16x2 $1, b, $8; mul.rn.f16x2 $2, c, $7; mul.rn.f16x2 $3, d, $8; }",
        "=&r,=&r,=&r,=&r,r,r,r,r,r,r", [word, factors[0], factors[1], factors[2], factors[3], sixteenth],
        dtype=(gl.int32, gl.int32, gl.int32, gl.int32), is_pure=True, pack=1,
    )  # fmt: skip


@gluon.jit
def _bf16_factors(low, high):
    """Return -(128 + zero) of the low and of the high row and their scales, each twice in a word."""
    return gl.inline_asm_elementwise(
        "{ .reg .b16 h, z; .reg .b32 t; .reg .f32 f;\n"
        "mov.b32 {h, z}, $4; cvt.f32.f16 f, z; add.f32 f, f, 0f44600000; cvt.rn.bf16x2.f32 $0, f, f;\n"
        "cvt.f32.f16 f, h; cvt.rn.bf16x2.f32 $2, f, f;\n"
        "mov.b32 {h, z}, $5; cvt.f32.f16 f, z; add.f32 f, f, 0f44600000; cvt.rn.bf16x2.f32 $1, f, f;\n"
        "cvt.f32.f16 f, h; cvt.rn.bf16x2.f32 $3, f, f; }",
        "=&r,=&r,=&r,=&r,r,r", [low, high],
        dtype=(gl.int32, gl.int32, gl.int32, gl.int32), is_pure=True, pack=1,
    )  # fmt: skip


@gluon.jit
def _bf16_numbers(word, factors):
    """As `_fp16_numbers`, in bf16, whose seven bits hold 128 + q."""
    one = gl.full(word.shape, 0x3F803F80, gl.int32, word.type.layout)
    return gl.inline_asm_elementwise(
        "{ .reg .b32 u, v, w, a, b, c, d, n; mov.b32 n, 0x80008000;\n"
        "shr.u32 u, $4, 4; shr.u32 v, $4, 8; shr.u32 w, $4, 12;\n"
        "lop3.b32 a, $4, 0x000F000F, 0x43004300, 0xea; lop3.b32 b, u, 0x000F000F, 0x43004300, 0xea;\n"
        "lop3.b32 c, v, 0x000F000F, 0x43004300, 0xea; lop3.b32 d, w, 0x000F000F, 0x43004300, 0xea;\n"
        "fma.rn.bf16x2 a, a, $9, $5; fma.rn.bf16x2 b, b, $9, $6; fma.rn.bf16x2 c, c, $9, $5;\n"
        "fma.rn.bf16x2 d, d, $9, $6; fma.rn.bf16x2 $0, a, $7, n; fma.rn.bf16x2 $1, b, $8, n;\n"
        "fma.rn.bf16x2 $2, c, $7, n; fma.rn.bf16x2 $3, d, $8, n; }",
        "=&r,=&r,=&r,=&r,r,r,r,r,r,r", [word, factors[0], factors[1], factors[2], factors[3], one],
        dtype=(gl.int32, gl.int32, gl.int32, gl.int32), is_pure=True, pack=1,
    )  # fmt: skip


@gluon.jit
def _factors(low, high, dtype: gl.constexpr):
    if dtype == gl.float16:
        return _fp16_factors(low, high)
    else:
        return _bf16_factors(low, high)


@gluon.jit
def _numbers(word, factors, dtype: gl.constexpr):
    if dtype == gl.float16:
        return _fp16_numbers(word, factors)
    else:
        return _bf16_numbers(word, factors)


@gluon.jit
def _halves(word, dtype: gl.constexpr):
    low = word.to(gl.int16).to(dtype, bitcast=True)
    return gl.join(low, (word >> 16).to(gl.int16).to(dtype, bitcast=True))


@gluon.jit
def _operand_of_word(word, factors, dtype: gl.constexpr):
    """Return `[threads, odd, pair, high row]`."""
    words = _numbers(word, factors, dtype)
    lower = gl.join(_halves(words[0], dtype), _halves(words[2], dtype))
    upper = gl.join(_halves(words[1], dtype), _halves(words[3], dtype))
    return gl.join(lower, upper)


@gluon.jit
def dequantize_half(
    words, upper_pair, selectors, HALF: gl.constexpr, dtype: gl.constexpr, GROUPS: gl.constexpr, layout: gl.constexpr
):  # fmt: skip
    """Return half a unit `[BLOCK_N, STEP]`, inputs in natural order, as the left operand of the MMA."""
    FIRST: gl.constexpr = 8 + 2 * (HALF * GROUPS // 2)
    LAST: gl.constexpr = FIRST + 2 if GROUPS == 4 else FIRST
    first = _factors(words[FIRST], words[FIRST + 1], dtype)
    last = _factors(words[LAST], words[LAST + 1], dtype)
    w0, w1 = _natural_order(words[4 * HALF], words[4 * HALF + 1], upper_pair, selectors)
    w2, w3 = _natural_order(words[4 * HALF + 2], words[4 * HALF + 3], upper_pair, selectors)
    lower = gl.join(_operand_of_word(w0, first, dtype), _operand_of_word(w1, first, dtype))
    upper = gl.join(_operand_of_word(w2, last, dtype), _operand_of_word(w3, last, dtype))
    numbers = gl.join(lower, upper)  # threads, odd, pair, high row, 16 inputs, 32 inputs
    numbers = gl.reshape(numbers, (WARPS, 8, 4, 2, 2, 2, 2, 2))
    numbers = gl.permute(numbers, (0, 5, 1, 7, 6, 4, 2, 3))
    return gl.convert_layout(gl.reshape(numbers, (BLOCK_N, STEP)), layout, assert_trivial=True)


@gluon.jit
def _work(item, tiles_m, whole_tiles, split_tiles, units_per_split, units):
    """Return where the tile of an item is, in tiles of outputs and of tokens, its first unit and the one after it."""
    tile = item
    first = item * 0
    end = first + units
    if item >= whole_tiles:
        part = item - whole_tiles
        tile = whole_tiles + part % split_tiles
        first = part // split_tiles * units_per_split
        end = gl.minimum(first + units_per_split, units)
    return tile // tiles_m, tile % tiles_m, first, end


@gluon.jit
def _advance(state, items, tiles_m, whole_tiles, split_tiles, units_per_split, units):
    """Return the state of the next unit: item, place of its tile, unit, end of its units.

    After the last unit the item is `items` or more, and the unit stays.
    """
    item, tile_n, tile_m, unit, end = state
    unit += 1
    if unit == end:
        item += gl.num_programs(0)
        if item < items:
            tile_n, tile_m, unit, end = _work(item, tiles_m, whole_tiles, split_tiles, units_per_split, units)
        else:
            unit -= 1
    return item, tile_n, tile_m, unit, end


@gluon.jit
def _fetch(x_descriptor, x_tiles, ready, stages, state, items, BLOCK_M: gl.constexpr):
    """Start to copy the activations of a unit into two stages."""
    item, _, tile_m, unit, _ = state
    valid = item < items
    for half in gl.static_range(2):
        mbarrier.expect(ready.index(stages[half]), BLOCK_M * STEP * 2, pred=valid)
    for half in gl.static_range(2):
        place = [tile_m * BLOCK_M, unit * (2 * STEP) + half * STEP]
        tma.async_copy_global_to_shared(
            x_descriptor, place, ready.index(stages[half]), x_tiles.index(stages[half]), pred=valid
        )


@gluon.jit(do_not_specialize=["tokens", "items", "whole_tiles", "split_tiles", "units_per_split"])
def warpgroup_kernel(
    packed_pointer, x_descriptor, bias_pointer, y_descriptor, parts_pointer, tokens, outputs, blocks, units,
    items, whole_tiles, split_tiles, units_per_split,
    HAS_BIAS: gl.constexpr, GROUPS: gl.constexpr, BLOCK_M: gl.constexpr, STAGES: gl.constexpr, SPLIT: gl.constexpr,
    PDL: gl.constexpr,
):  # fmt: skip
    """The first `whole_tiles` items are tiles of `y`, others `parts [splits, split_tiles, BLOCK_M, BLOCK_N]`.

    Products of two steps are in flight at a time, each with a left operand in registers of its own, which nothing may
    write before its product has ended. The number of stages is odd: a unit's two steps are fetched together.
    """
    dtype: gl.constexpr = x_descriptor.dtype
    sums_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, BLOCK_M, 16])
    left_layout: gl.constexpr = gl.DotOperandLayout(0, sums_layout, 2)
    x_tiles = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_M, STEP], x_descriptor.layout)
    y_tile = gl.allocate_shared_memory(dtype, [BLOCK_M, BLOCK_N], y_descriptor.layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=1)
    fence_async_shared()

    thread = gl.arange(0, 256, layout=THREADS)
    upper_pair = thread & 2
    is_odd = (thread & 1) == 1
    selectors = (gl.where(is_odd, 0x6420, 0x7531), gl.where(is_odd, 0x3514, 0x5240), gl.where(is_odd, 0x3716, 0x7260))

    tiles_m = gl.cdiv(tokens, BLOCK_M)
    start = gl.program_id(0)
    tile_n, tile_m, first, end = _work(start, tiles_m, whole_tiles, split_tiles, units_per_split, units)
    w_state = (start, tile_n, tile_m, first, end)
    soon = load_unit(packed_pointer, w_state, blocks, units, GROUPS)
    w_state = _advance(w_state, items, tiles_m, whole_tiles, split_tiles, units_per_split, units)
    if PDL:
        gdc_wait()
    x_state = (start, tile_n, tile_m, first, end)
    for stage in gl.static_range(0, STAGES - 1, 2):
        _fetch(x_descriptor, x_tiles, ready, (stage, stage + 1), x_state, items, BLOCK_M)
        x_state = _advance(x_state, items, tiles_m, whole_tiles, split_tiles, units_per_split, units)
    if PDL:
        gdc_launch_dependents()

    free = STAGES - 1
    stage = 0
    phase = 0
    output = gl.arange(0, BLOCK_N, layout=gl.SliceLayout(1, sums_layout))
    for item in range(start, items, gl.num_programs(0)):
        tile_n, tile_m, first, end = _work(item, tiles_m, whole_tiles, split_tiles, units_per_split, units)
        sums = warpgroup_mma_init(gl.zeros([BLOCK_N, BLOCK_M], gl.float32, sums_layout))
        for unit in range(first, end):
            words = soon
            soon = load_unit(packed_pointer, w_state, blocks, units, GROUPS)
            w_state = _advance(w_state, items, tiles_m, whole_tiles, split_tiles, units_per_split, units)
            freed = (free, stage)
            for half in gl.static_range(2):
                w = dequantize_half(words, upper_pair, selectors, half, dtype, GROUPS, left_layout)
                mbarrier.wait(ready.index(stage), phase)
                x_tile = x_tiles.index(stage).permute((1, 0))
                sums = warpgroup_mma(w, x_tile, sums, use_acc=(unit > first) | (half > 0), is_async=True)
                sums = warpgroup_mma_init(warpgroup_mma_wait(1, deps=(sums,)))  # the step before has ended
                free = stage
                stage += 1
                if stage == STAGES:
                    stage = 0
                    phase ^= 1
            _fetch(x_descriptor, x_tiles, ready, freed, x_state, items, BLOCK_M)
            x_state = _advance(x_state, items, tiles_m, whole_tiles, split_tiles, units_per_split, units)
        total = warpgroup_mma_wait(0, deps=(sums,))

        if item < whole_tiles:
            first_output = tile_n * BLOCK_N
            if HAS_BIAS:
                bias = gl.load(bias_pointer + first_output + output, mask=first_output + output < outputs, other=0.0)
                total += bias.to(gl.float32)[:, None]
            tma.store_wait(0)
            y_tile.store(gl.permute(total.to(dtype), (1, 0)))
            fence_async_shared()
            tma.async_copy_shared_to_global(y_descriptor, [tile_m * BLOCK_M, first_output], y_tile)
        elif SPLIT:
            token = gl.arange(0, BLOCK_M, layout=gl.SliceLayout(0, sums_layout))
            place = token[None, :] * BLOCK_N + output[:, None]
            part = (item - whole_tiles).to(gl.int64) * (BLOCK_M * BLOCK_N)
            gl.store(parts_pointer + part + place, total)
    tma.store_wait(0)
    for stage in gl.static_range(STAGES):
        mbarrier.invalidate(ready.index(stage))
