"""The GPU instructions that only W4A16 needs, each with a plain-Triton equivalent: see `vila_core.ops.fragments`."""

# Triton has no types: a kernel's arguments and its launch are not checked.
# Compile-time constants are in capitals, tuples grow by `+`.
# ruff: noqa: N803
# pyright: reportGeneralTypeIssues=false
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportArgumentType=false, reportIndexIssue=false, reportAttributeAccessIssue=false, reportAssignmentType=false

import triton
import triton.language as tl

from vila_core.ops.fragments import halves, word_of


@triton.jit
def load_words(pointer, INLINE: tl.constexpr):
    """Return four consecutive int32 words, `pointer` aligned to 16 bytes."""
    if INLINE:
        return tl.inline_asm_elementwise(
            "ld.global.v4.b32 {$0,$1,$2,$3}, [$4];",
            "=r,=r,=r,=r,l",
            [pointer],
            dtype=(tl.int32, tl.int32, tl.int32, tl.int32),
            is_pure=False,
            pack=1,
        )
    else:
        return tl.load(pointer), tl.load(pointer + 1), tl.load(pointer + 2), tl.load(pointer + 3)


@triton.jit
def stream_word_pair(pointer, valid, INLINE: tl.constexpr):
    """Return two consecutive int32 words that are read once; 0 where not `valid`."""
    if INLINE:
        return tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.ne.b32 p, $3, 0; mov.b32 $0, 0; mov.b32 $1, 0;\n"
            "@p ld.global.L1::no_allocate.v2.b32 {$0,$1}, [$2]; }",
            "=&r,=&r,l,r",
            [pointer, valid.to(tl.int32)],
            dtype=(tl.int32, tl.int32),
            is_pure=False,
            pack=1,
        )
    else:
        return tl.load(pointer, mask=valid, other=0), tl.load(pointer + 1, mask=valid, other=0)


@triton.jit
def store_words(pointer, words, valid, INLINE: tl.constexpr):
    """Store four consecutive int32 words where `valid`, `pointer` aligned to 16 bytes."""
    if INLINE:
        tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.ne.b32 p, $6, 0; @p st.global.v4.b32 [$1], {$2,$3,$4,$5}; mov.b32 $0, 0; }",
            "=r,l,r,r,r,r,r",
            [pointer, words[0], words[1], words[2], words[3], valid.to(tl.int32)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
    else:
        for word in tl.static_range(4):
            tl.store(pointer + word, words[word], mask=valid)


@triton.jit
def take_bits(word, mask: tl.constexpr, others: tl.constexpr, INLINE: tl.constexpr):
    """`(word & mask) | others`, one instruction."""
    if INLINE:
        mask_word = tl.full(word.shape, mask, tl.int32)
        others_word = tl.full(word.shape, others, tl.int32)
        return tl.inline_asm_elementwise(
            "lop3.b32 $0, $1, $2, $3, 0xea;", "=r,r,r,r", [word, mask_word, others_word], tl.int32, True, 1
        )
    else:
        return (word & mask) | others


@triton.jit
def multiply_add_halves(a, b, c, dtype: tl.constexpr, INLINE: tl.constexpr):
    """`a · b + c` on both 16-bit halves of a word, rounded once."""
    if INLINE:
        if dtype == tl.float16:
            return tl.inline_asm_elementwise("fma.rn.f16x2 $0, $1, $2, $3;", "=r,r,r,r", [a, b, c], tl.int32, True, 1)
        else:
            return tl.inline_asm_elementwise("fma.rn.bf16x2 $0, $1, $2, $3;", "=r,r,r,r", [a, b, c], tl.int32, True, 1)
    else:
        a_low, a_high = halves(a, dtype)
        b_low, b_high = halves(b, dtype)
        c_low, c_high = halves(c, dtype)
        low = a_low.to(tl.float32) * b_low.to(tl.float32) + c_low.to(tl.float32)
        high = a_high.to(tl.float32) * b_high.to(tl.float32) + c_high.to(tl.float32)
        return word_of(low.to(dtype), high.to(dtype))


@triton.jit
def settled(total, INLINE: tl.constexpr):
    """Return `total` as it is, once it is there.

    On Hopper `tl.dot` runs on while the loop goes on, and Triton (3.6) lets the next step overwrite the registers that
    hold the left operand before the tensor core has read them. A use of the result in the loop makes it wait; the copy
    itself costs nothing.
    """
    if INLINE:
        return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=f,f", [total], tl.float32, True, 1)
    else:
        return total
