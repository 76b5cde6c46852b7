"""The inner loops of products on a CPU, in LLVM's vector types; numba compiles them for this machine.

LLVM supports vectors of any width and compiles the pairs below to `vpmaddwd` (AVX2, AVX512), `vpdpwssd` (VNNI) or
widening multiplications (ARM). Plain loops in numba are ten times slower.

Int4 weights are laid out for these loops (see `pack` of `kernel`): `ROWS` outputs side by side, one 32-bit word for
eight inputs of an output. Half-words hold the even and the odd inputs, so that a shift of each gives a pair of
neighbors:

    bits 0-3, 4-7, 8-11, 12-15 of the low half: inputs 0, 2, 4, 6;   of the high half: inputs 1, 3, 5, 7

Activations are 15-bit integers (`products.whole_numbers`). A sum over a group stays below 2³¹ even when scaled by 256:
32 of the 128 inputs, times 15 · 256, times 2¹⁴.
"""

# llvmlite and numba have no types.
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportMissingParameterType=false
# pyright: reportUntypedFunctionDecorator=false

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core import cgutils

from vila_quant.kernels.cpu.compiled.compiler import vector_code

ROWS = 16
"""Outputs computed side by side: a 512-bit vector of sums, which LLVM splits for 256-bit registers."""

WORD = 8
"""Inputs per word."""

WORDS_AT_ONCE = 4
"""Words per iteration of the inner loop: the smallest group, 32 inputs. One at a time is 4 % slower with AVX2."""

HAS_BFLOAT16_MATRICES = any(get_host_cpu_features().get(name) for name in ("amx-bf16", "bf16"))
"""Whether this CPU multiplies matrices in bfloat16: AMX on x86, BFMMLA on ARM."""

TILE = 24 if get_host_cpu_features().get("avx512f") else 6
"""Rows of activations that are multiplied together: as many as have their sums in registers (32 of 512 bits with
AVX512, 16 of 256 with AVX2, 32 of 128 on ARM)."""

PAIRS_AT_ONCE = 1 if get_host_cpu_features().get("avx512f") else 4
"""Pairs of inputs per iteration for a tile. Several are faster with AVX2. With VNNI, LLVM would replace most `vpdpwssd`
by two instructions, to shorten a chain of additions that the other rows hide anyway."""

AHEAD = 8192
"""Bytes by which weights are prefetched. Without it, a core waits for memory a third of its time."""

LOCALITY = 2
"""Prefetch into the L2 cache (LLVM's `prefetch`). With 0 (only L1), an Intel core takes twice as long."""

I8, I16, I32, I64, F16, F32 = (
    ir.IntType(8),
    ir.IntType(16),
    ir.IntType(32),
    ir.IntType(64),
    ir.HalfType(),
    ir.FloatType(),
)


@vector_code
def add_nibble_rows(typing, words, scales, zeros, x, x_scales, x_sums, groups, words_a_group, y):
    """Add the product of `ROWS` outputs and one row of activations to `y`. All but the two counts are addresses.

        y[r] += Σ_g scales[g, r] · x_scales[g] · (Σ_k q[g, k, r] · x[g, k] - zeros[g, r] · x_sums[g])

    `words [G, g / 8, ROWS]` uint32, `scales [G, ROWS]` float16, `zeros [G, ROWS]` uint8,
    `x [G, g]` int16, `x_scales [G]` float32, `x_sums [G]` int32, `y [ROWS]` float32
    """

    def generate(context, builder, signature, arguments):
        b = builder
        words, scales, zeros, x, x_scales, x_sums, groups, words_a_group, y = arguments
        total = _variable(b, _load(b, y, I64(0), _vector(F32)))
        ones, sixteens, many = (
            _variable(b, _constant(I32, 0)) for _ in range(3)
        )  # sums of q · x, of 16 q · x, of 256 q · x
        with cgutils.for_range(b, groups) as group:
            for sums in (ones, sixteens, many):
                b.store(_constant(I32, 0), sums)
            with cgutils.for_range(b, b.udiv(words_a_group, I64(WORDS_AT_ONCE))) as turn:
                first_word = b.add(b.mul(group.index, words_a_group), b.mul(turn.index, I64(WORDS_AT_ONCE)))
                for word in range(WORDS_AT_ONCE):
                    index = b.add(first_word, I64(word))
                    offset = b.mul(index, I64(4 * ROWS))
                    _prefetch(b, words, b.add(offset, I64(AHEAD)))
                    pairs = _load(b, words, offset, _vector(I16, 2 * ROWS))
                    first, second, third, fourth = (
                        _pairs_of_all_rows(b, _load(b, x, b.add(b.mul(index, I64(2 * WORD)), I64(4 * pair)), I32))
                        for pair in range(4)
                    )
                    _add_products(b, ones, b.and_(pairs, _constant(I16, 0x000F, 2 * ROWS)), first)
                    _add_products(b, sixteens, b.and_(pairs, _constant(I16, 0x00F0, 2 * ROWS)), second)
                    _add_products(b, many, b.and_(pairs, _constant(I16, 0x0F00, 2 * ROWS)), third)
                    _add_products(b, ones, b.lshr(pairs, _constant(I16, 12, 2 * ROWS)), fourth)
            sums = b.add(b.load(ones), b.ashr(b.load(sixteens), _constant(I32, 4)))
            sums = b.add(sums, b.ashr(b.load(many), _constant(I32, 8)))
            zero = b.zext(_load(b, zeros, b.mul(group.index, I64(ROWS)), _vector(I8)), _vector(I32))
            x_sum = _splat(b, _load(b, x_sums, b.mul(group.index, I64(4)), I32))
            scale = b.fpext(_load(b, scales, b.mul(group.index, I64(2 * ROWS)), _vector(F16)), _vector(F32))
            x_scale = _splat(b, _load(b, x_scales, b.mul(group.index, I64(4)), F32))
            sums = b.sitofp(b.sub(sums, b.mul(zero, x_sum)), _vector(F32))
            b.store(b.fadd(b.load(total), b.fmul(sums, b.fmul(scale, x_scale)), flags=["contract"]), total)
        _store(b, b.load(total), y)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 9), generate


@vector_code
def unpack_nibbles(typing, words, count, pairs):
    """Unpack `words [count, ROWS]` of `ROWS` outputs to `pairs [4 count, ROWS]` int32: two neighboring int16 each."""

    def generate(context, builder, signature, arguments):
        b = builder
        words, count, pairs = arguments
        with cgutils.for_range(b, count) as word:
            packed = _load(b, words, b.mul(word.index, I64(4 * ROWS)), _vector(I16, 2 * ROWS))
            for pair in range(WORD // 2):
                weights = b.and_(b.lshr(packed, _constant(I16, 4 * pair, 2 * ROWS)), _constant(I16, 15, 2 * ROWS))
                index = b.add(b.mul(word.index, I64(WORD // 2)), I64(pair))
                _store(b, weights, b.add(pairs, b.mul(index, I64(4 * ROWS))))
        return context.get_dummy_value()

    return types.void(*[types.intp] * 3), generate


@vector_code
def add_tile_of_a_group(typing, weights, scales, zeros, x, x_scales, x_sums, steps, y):
    """Add the product of `ROWS` outputs and `TILE` rows of activations over one group to `y`.

    The sums of the rows stay in registers. Results are those of `add_nibble_rows` to the bit.

    `weights [g / 2, ROWS]` int32, pairs of neighboring int16 (see `unpack_nibbles`), `scales [ROWS]` float16, `zeros
    [ROWS]` uint8, `x [g / 2, TILE]` int32, pairs as well, `x_scales [TILE]` float32, `x_sums [TILE]` int32,
    `y [TILE, ROWS]` float32; `steps` of `PAIRS_AT_ONCE` pairs make the group.
    """

    def generate(context, builder, signature, arguments):
        b = builder
        weights, scales, zeros, x, x_scales, x_sums, steps, y = arguments
        sums = [_variable(b, _constant(I32, 0)) for _ in range(TILE)]
        for of_row in sums:
            b.store(_constant(I32, 0), of_row)
        with cgutils.for_range(b, steps) as step:
            for pair in range(PAIRS_AT_ONCE):
                index = b.add(b.mul(step.index, I64(PAIRS_AT_ONCE)), I64(pair))
                of_pair = _load(b, weights, b.mul(index, I64(4 * ROWS)), _vector(I16, 2 * ROWS))
                for row, of_row in enumerate(sums):
                    offset = b.add(b.mul(index, I64(4 * TILE)), I64(4 * row))
                    _add_products(b, of_row, of_pair, _pairs_of_all_rows(b, _load(b, x, offset, I32)))
                    b.store(_in_order(b, b.load(of_row)), of_row)
        zero = b.zext(_load(b, zeros, I64(0), _vector(I8)), _vector(I32))
        scale = b.fpext(_load(b, scales, I64(0), _vector(F16)), _vector(F32))
        for row, of_row in enumerate(sums):
            x_sum, x_scale = (
                _splat(b, _load(b, x_sums, I64(4 * row), I32)),
                _splat(b, _load(b, x_scales, I64(4 * row), F32)),
            )
            exact = b.sitofp(b.sub(b.load(of_row), b.mul(zero, x_sum)), _vector(F32))
            place = b.add(y, I64(4 * ROWS * row))
            total = b.fadd(
                _load(b, place, I64(0), _vector(F32)), b.fmul(exact, b.fmul(scale, x_scale)), flags=["contract"]
            )
            _store(b, total, place)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 8), generate


@vector_code
def byte_row(typing, weight, x, x_scales, groups, vectors_a_group):
    """Return the product of one output's int8 weights and one row of activations. All but the counts are addresses.

        Σ_g x_scales[g] · Σ_k weight[g, k] · x[g, k]

    `weight [G, g]` int8, `x [G, g]` int16, `x_scales [G]` float32, in groups of `vectors_a_group` vectors of 32 inputs
    """

    def generate(context, builder, signature, arguments):
        b = builder
        weight, x, x_scales, groups, vectors_a_group = arguments
        total = _variable(b, _constant(F32, 0.0))
        group_sums = _variable(b, _constant(I32, 0))
        with cgutils.for_range(b, groups) as group:
            b.store(_constant(I32, 0), group_sums)
            with cgutils.for_range(b, vectors_a_group) as vector:
                offset = b.mul(b.add(b.mul(group.index, vectors_a_group), vector.index), I64(2 * ROWS))
                _prefetch(b, weight, b.add(offset, I64(AHEAD)))
                weights = b.sext(_load(b, weight, offset, _vector(I8, 2 * ROWS)), _vector(I16, 2 * ROWS))
                _add_products(b, group_sums, weights, _load(b, x, b.mul(offset, I64(2)), _vector(I16, 2 * ROWS)))
            x_scale = _splat(b, _load(b, x_scales, b.mul(group.index, I64(4)), F32))
            scaled = b.fmul(b.sitofp(b.load(group_sums), _vector(F32)), x_scale)
            b.store(b.fadd(b.load(total), scaled, flags=["contract"]), total)
        kind = ir.FunctionType(F32, [F32, _vector(F32)])
        add_all = cgutils.get_or_insert_function(b.module, kind, f"llvm.vector.reduce.fadd.v{ROWS}f32")
        return b.call(add_all, [F32(0.0), b.load(total)], fastmath=["reassoc"])

    return types.float32(*[types.intp] * 5), generate


@vector_code
def dequantize_nibbles(typing, words, scales, zeros, groups, words_a_group, panel):
    """Write the weights `(q - zero) · scale` of `ROWS` outputs to `panel [ROWS, K]`, float32, or bfloat16 as uint16.

    `words`, `scales`, `zeros` as in `add_nibble_rows`.
    """

    def generate(context, builder, signature, arguments):
        b = builder
        words, scales, zeros, groups, words_a_group, array = arguments
        array = context.make_array(panel)(context, b, array)
        start, row_bytes = b.ptrtoint(array.data, I64), b.extract_value(array.strides, 0)
        with cgutils.for_range(b, groups) as group:
            zero = b.zext(_load(b, zeros, b.mul(group.index, I64(ROWS)), _vector(I8)), _vector(I32))
            scale = b.fpext(_load(b, scales, b.mul(group.index, I64(2 * ROWS)), _vector(F16)), _vector(F32))
            with cgutils.for_range(b, words_a_group) as word:
                index = b.add(b.mul(group.index, words_a_group), word.index)
                eight = _load(b, words, b.mul(index, I64(4 * ROWS)), _vector(I32))
                inputs = []
                for k in range(WORD):
                    q = b.and_(b.lshr(eight, _constant(I32, 4 * (k // 2) + 16 * (k % 2))), _constant(I32, 15))
                    weights = b.fmul(b.sitofp(b.sub(q, zero), _vector(F32)), scale)
                    inputs.append(b.bitcast(weights, _vector(I32)))
                if panel.dtype == types.uint16:
                    inputs = [_pair_of_bfloat16(b, *inputs[k : k + 2]) for k in range(0, WORD, 2)]
                address = b.add(start, b.mul(index, I64(4 * len(inputs))))
                for row, values in enumerate(_transpose(b, inputs)):
                    _store(b, values, b.add(address, b.mul(row_bytes, I64(row))))
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5, panel), generate


def _vector(element, width=ROWS):
    return ir.VectorType(element, width)


def _constant(element, value, width=ROWS):
    return ir.Constant(_vector(element, width), [value] * width)


def _variable(b, value):
    """Return the address of a new variable, which LLVM keeps in registers."""
    place = cgutils.alloca_once(b, value.type)
    b.store(value, place)
    return place


def _load(b, base, offset, kind):
    value = b.load(b.inttoptr(b.add(base, offset), kind.as_pointer()))
    value.align = 1
    return value


def _store(b, value, address):
    b.store(value, b.inttoptr(address, value.type.as_pointer())).align = 1


def _prefetch(b, base, offset):
    pointer = I8.as_pointer()
    function = b.module.declare_intrinsic(
        "llvm.prefetch", [pointer], ir.FunctionType(ir.VoidType(), [pointer, I32, I32, I32])
    )
    b.call(function, [b.inttoptr(b.add(base, offset), pointer), I32(0), I32(LOCALITY), I32(1)])  # to read data


def _splat(b, value, width=ROWS):
    one = b.insert_element(ir.Constant(_vector(value.type, width), ir.Undefined), value, I32(0))
    return b.shuffle_vector(one, one, _constant(I32, 0, width))


def _pairs_of_all_rows(b, pair):
    """Repeat two activations, packed in an I32, for each of `ROWS` outputs."""
    return b.bitcast(_splat(b, pair), _vector(I16, 2 * ROWS))


def _add_products(b, sums, weights, activations):
    """`sums[r] += w[2r] · a[2r] + w[2r + 1] · a[2r + 1]`, in the form that LLVM compiles to one instruction."""
    wide = _vector(I32, 2 * ROWS)
    products = b.mul(b.sext(weights, wide), b.sext(activations, wide))
    even, odd = (
        b.shuffle_vector(products, products, ir.Constant(_vector(I32), list(range(half, 2 * ROWS, 2))))
        for half in (0, 1)
    )
    b.store(b.add(b.load(sums), b.add(even, odd)), sums)


def _in_order(b, sums):
    """Return `sums`, but keep LLVM from reordering the additions before and after, which takes more registers."""
    floats = _vector(F32)
    kind = ir.FunctionType(floats, [floats])
    fence = cgutils.get_or_insert_function(b.module, kind, f"llvm.arithmetic.fence.v{ROWS}f32")
    return b.bitcast(b.call(fence, [b.bitcast(sums, floats)]), sums.type)


def _pair_of_bfloat16(b, even, odd):
    """Round two vectors of float32 bits to bfloat16, ties to even, and interleave them, `even` in the low half."""
    sixteen, one, almost = (_constant(I32, value) for value in (16, 1, 0x7FFF))
    low, high = (b.add(bits, b.add(almost, b.and_(b.lshr(bits, sixteen), one))) for bits in (even, odd))
    return b.or_(b.lshr(low, sixteen), b.and_(high, _constant(I32, 0xFFFF0000)))


def _transpose(b, columns):
    """Transpose vectors of `ROWS` elements (a power of two of them) to one vector per row."""
    while len(columns) > 1:
        width = columns[0].type.count
        pairs = ir.Constant(_vector(I32, 2 * width), [i // 2 + i % 2 * width for i in range(2 * width)])
        half = len(columns) // 2
        columns = [b.shuffle_vector(columns[j], columns[j + half], pairs) for j in range(half)]
    whole = columns[0]
    count = whole.type.count // ROWS
    parts = (ir.Constant(_vector(I32, count), list(range(row * count, (row + 1) * count))) for row in range(ROWS))
    return [b.shuffle_vector(whole, whole, part) for part in parts]
