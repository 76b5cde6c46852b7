"""The few GPU instructions that kernels for some tokens need and Triton has no words for, each with a plain-Triton
equivalent.

Values are 1-D tensors of 32 · warps elements: one 32-bit register in each thread. `INLINE` chooses the PTX instruction;
without it the same value is computed in plain Triton, which the CPU interpreter can run.
"""

# Triton has no types: a kernel's arguments and its launch are not checked.
# Compile-time constants are in capitals, tuples grow by `+`.
# ruff: noqa: N803, N806, RUF005
# pyright: reportGeneralTypeIssues=false
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportArgumentType=false, reportIndexIssue=false, reportAttributeAccessIssue=false, reportAssignmentType=false

import triton
import triton.language as tl


@triton.constexpr_function
def _guarded_load(cache):
    return (
        "{ .reg .pred p; setp.ne.b32 p, $5, 0; mov.b32 $0, 0; mov.b32 $1, 0; mov.b32 $2, 0; mov.b32 $3, 0;\n"
        f"@p ld.global{cache}.v4.b32 {{$0,$1,$2,$3}}, [$4]; }}"
    )


@triton.jit
def _load_words_if(pointer, valid, CACHE: tl.constexpr, INLINE: tl.constexpr):
    if INLINE:
        return tl.inline_asm_elementwise(
            _guarded_load(CACHE),
            "=&r,=&r,=&r,=&r,l,r",
            [pointer, valid.to(tl.int32)],
            dtype=(tl.int32, tl.int32, tl.int32, tl.int32),
            is_pure=False,
            pack=1,
        )
    else:
        return (
            tl.load(pointer, mask=valid, other=0),
            tl.load(pointer + 1, mask=valid, other=0),
            tl.load(pointer + 2, mask=valid, other=0),
            tl.load(pointer + 3, mask=valid, other=0),
        )


@triton.jit
def load_words_if(pointer, valid, INLINE: tl.constexpr):
    """Return four consecutive int32 words, `pointer` aligned to 16 bytes; 0 where not `valid`."""
    return _load_words_if(pointer, valid, "", INLINE)


@triton.jit
def stream_words(pointer, valid, INLINE: tl.constexpr):
    """Return four consecutive int32 words that are read once: they pass by the L1 cache. 0 where not `valid`."""
    return _load_words_if(pointer, valid, ".L1::no_allocate", INLINE)


@triton.jit
def halves(word, dtype: tl.constexpr):
    """Return the low and the high 16 bits of a word as numbers of `dtype`."""
    low = word.to(tl.int16).to(dtype, bitcast=True)
    return low, (word >> 16).to(tl.int16).to(dtype, bitcast=True)


@triton.jit
def word_of(low, high):
    """Inverse of `halves`."""
    low = low.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    return low | (high.to(tl.int16, bitcast=True).to(tl.int32) << 16)


@triton.constexpr_function
def _mma_assembly(dtype):
    kind = "f16" if dtype == tl.float16 else "bf16"
    return (
        f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32 {{$0,$1,$2,$3}},"
        "{$4,$5,$6,$7},{$8,$9},{$10,$11,$12,$13};"
    )


@triton.jit
def mma(c, a, b0, b1, WARPS: tl.constexpr, dtype: tl.constexpr, INLINE: tl.constexpr):
    """`mma.m16n8k16`: four fp32 accumulators `c`, four words `a` (16 rows), `b0` and `b1` (8 columns), distributed as
    PTX defines.

    Thread 4r + q of a warp holds a[r, 2q..], a[r + 8, 2q..], a[r, 2q + 8..], a[r + 8, 2q + 8..]; b[2q.., r], b[2q +
    8.., r]; c[r, 2q], c[r, 2q + 1], c[r + 8, 2q], c[r + 8, 2q + 1].
    """
    if INLINE:
        return tl.inline_asm_elementwise(
            _mma_assembly(dtype),
            "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f",
            [a[0], a[1], a[2], a[3], b0, b1, c[0], c[1], c[2], c[3]],
            dtype=(tl.float32, tl.float32, tl.float32, tl.float32),
            is_pure=True,
            pack=1,
        )
    else:
        low = _dot_pairs(a[0], b0, WARPS, dtype) + _dot_pairs(a[2], b1, WARPS, dtype)
        high = _dot_pairs(a[1], b0, WARPS, dtype) + _dot_pairs(a[3], b1, WARPS, dtype)
        c0, c1 = tl.split(tl.reshape(low, (32 * WARPS, 2)))
        c2, c3 = tl.split(tl.reshape(high, (32 * WARPS, 2)))
        return c[0] + c0, c[1] + c1, c[2] + c2, c[3] + c3


@triton.jit
def _dot_pairs(a, b, WARPS: tl.constexpr, dtype: tl.constexpr):
    """Return `[warps, 8 rows, 8 columns]`: what one word of `a` and one of `b` add to the product."""
    a_low, a_high = halves(a, dtype)
    b_low, b_high = halves(b, dtype)
    rows = (WARPS, 8, 1, 4)
    columns = (WARPS, 1, 8, 4)
    even = tl.reshape(a_low.to(tl.float32), rows) * tl.reshape(b_low.to(tl.float32), columns)
    odd = tl.reshape(a_high.to(tl.float32), rows) * tl.reshape(b_high.to(tl.float32), columns)
    return tl.sum(even + odd, axis=3)


@triton.constexpr_function
def _sum_assembly(values, warps, results, parts):
    """PTX: every thread stores `values` numbers in shared memory and adds up `parts · results` sums over warps."""
    threads = 32 * warps
    outputs = parts * results
    lines = [
        f".shared .align 16 .b32 parts[{values * threads}]; .reg .b32 t, own, base; .reg .f32 part; .reg .pred some;"
    ]
    lines += ["mov.u32 t, %tid.x; mov.u32 base, parts; shl.b32 own, t, 2; add.u32 own, own, base;"]
    lines += [f"st.shared.f32 [own+{4 * threads * value}], ${outputs + value};" for value in range(values)]
    lines += ["bar.sync 0;"]
    # result i of thread t is number t + i · threads of [values / parts, 32]: value t // 32 + i · warps of lane t % 32
    lines += ["and.b32 own, t, 31; shr.u32 t, t, 5;"]
    lines += [f"mad.lo.u32 own, t, {threads}, own; shl.b32 own, own, 2; add.u32 own, own, base;"]
    lines += [f"setp.lt.u32 some, t, {values // parts};"]
    for output in range(outputs):
        first_value = output // results * (values // parts) + output % results * warps
        lines += [f"mov.f32 ${output}, 0f00000000;"]
        for warp in range(warps):
            place = 4 * (first_value * threads + 32 * warp)
            lines += [f"@some ld.shared.f32 part, [own+{place}]; @some add.f32 ${output}, ${output}, part;"]
    return "{ " + "\n".join(lines) + " }"


@triton.constexpr_function
def _sum_constraints(values, results):
    return ",".join(["=&f"] * results + ["f"] * values)


@triton.constexpr_function
def _floats(count):
    return (tl.float32,) * count


@triton.jit
def sum_over_warps(values, COUNT: tl.constexpr, WARPS: tl.constexpr, PARTS: tl.constexpr, INLINE: tl.constexpr):
    """Return the sums over warps of `COUNT` (a power of two) values, as a tuple of tensors `[32 · WARPS]`.

    The values come in `PARTS` equal parts, whose tensors follow one another. Number `value · 32 + lane` of the sums of
    a part is element `n % (32 · WARPS)` of its tensor `n // (32 · WARPS)`; with fewer sums than threads the tensor's
    first elements hold them.
    """
    SIZE: tl.constexpr = COUNT // PARTS
    RESULTS: tl.constexpr = SIZE // WARPS if SIZE > WARPS else 1
    if INLINE:
        return tl.inline_asm_elementwise(
            _sum_assembly(COUNT, WARPS, RESULTS, PARTS), _sum_constraints(COUNT, PARTS * RESULTS), values,
            _floats(PARTS * RESULTS), False, 1,
        )  # fmt: skip
    else:
        number = tl.arange(0, 32 * WARPS)
        results = ()
        for result in tl.static_range(PARTS * RESULTS):
            total = tl.zeros([32 * WARPS], tl.float32)
            for value in tl.static_range(SIZE):
                summed = tl.sum(tl.reshape(values[result // RESULTS * SIZE + value], (WARPS, 32)), axis=0)
                everywhere = tl.reshape(tl.broadcast_to(summed[None, :], (WARPS, 32)), (32 * WARPS,))
                total = tl.where(result % RESULTS * WARPS + number // 32 == value, everywhere, total)
            results = results + (total,)
        return results
