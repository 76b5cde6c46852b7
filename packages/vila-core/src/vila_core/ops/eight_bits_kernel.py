"""The kernels' side of `eight_bits`, in integer arithmetic: GPUs before sm89 have no conversions of e4m3.

e4m3 is s eeee mmm, fp16 s eeeee mmmmmmmmmm: with both fields moved to their places, fp16 reads 2^-8 of the number
"""

# Triton has no types: a kernel's arguments and its launch are not checked. Compile-time constants are in capitals.
# ruff: noqa: N803, N806
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportArgumentType=false, reportIndexIssue=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

SMALLEST_EXPONENT = tl.constexpr(1)
"""As in `eight_bits`."""
CODES_PER_NUMBER = tl.constexpr(256.0)
"""`decoded` returns numbers divided by this."""


@triton.jit
def finite(x):
    """Return fp32 with 0 for what is not finite."""
    return tl.where(tl.abs(x) < float("inf"), x, 0.0)


@triton.jit
def scale_bits(largest):
    """Return the bits of the scale, an fp32 number, for heads whose largest magnitude is `largest` (fp32)."""
    bits = largest.to(tl.int32, bitcast=True)
    # 448 is 1.75 · 2^8: the exponent is one more if the mantissa exceeds 1.75.
    return tl.maximum(((bits + 0x1FFFFF) >> 23) - 8, SMALLEST_EXPONENT) << 23


@triton.jit
def encoded(x, scale):
    """Return the codes of finite fp32 numbers divided by the scale with the bits `scale`, as uint8."""
    x = x * ((254 << 23) - scale).to(tl.float32, bitcast=True)
    bits = x.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    # Rounded to three digits, ties to even; exponents are counted from 2^-7 instead of 2^-127.
    normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - (120 << 3)
    # Below 2^-6 in steps of 2^-9. Adding and subtracting 1.5 · 2^23 rounds.
    small = ((tl.abs(x) * 512.0 + 12582912.0) - 12582912.0).to(tl.int32)
    code = tl.where(magnitude < 0x3C800000, small, normal)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def decoded(codes, dtype: tl.constexpr, INLINE: tl.constexpr):
    """Return the numbers of uint8 codes, divided by `CODES_PER_NUMBER`, in fp16 or bf16."""
    if INLINE:
        # Four codes of a register become two registers of two numbers: the codes to the upper bytes, then the shift.
        half = tl.inline_asm_elementwise(
            """{ .reg .b32 low, high, sign_low, sign_high;
            prmt.b32 low, $2, 0, 0x1404;
            prmt.b32 high, $2, 0, 0x3424;
            and.b32 sign_low, low, 0x80008000;
            and.b32 sign_high, high, 0x80008000;
            shr.u32 low, low, 1;
            shr.u32 high, high, 1;
            lop3.b32 $0, low, 0x3f803f80, sign_low, 0xea;
            lop3.b32 $1, high, 0x3f803f80, sign_high, 0xea; }""",
            "=r,=r,r",
            [codes],
            dtype=tl.float16,
            is_pure=True,
            pack=4,
        )
    else:
        wide = codes.to(tl.int32)
        half = (((wide & 0x80) << 8) | ((wide & 0x7F) << 7)).to(tl.uint16).to(tl.float16, bitcast=True)
    if dtype == tl.float16:
        return half
    else:
        return half.to(tl.float32).to(dtype)


@triton.jit
def quantized(low, high):
    """Return codes of both halves of a head, the scale's bits, and what the codes stand for, in fp32."""
    low, high = finite(low), finite(high)
    scale = scale_bits(tl.maximum(tl.max(tl.abs(low), axis=0), tl.max(tl.abs(high), axis=0)))
    code_low, code_high = encoded(low, scale), encoded(high, scale)
    factor = scale.to(tl.float32, bitcast=True) * CODES_PER_NUMBER
    low = decoded(code_low, tl.float16, False).to(tl.float32) * factor
    high = decoded(code_high, tl.float16, False).to(tl.float32) * factor
    return code_low, code_high, scale, low, high


@triton.jit
def quantize_kernel(
    x_pointer, codes_pointer, scales_pointer, y_pointer, heads, tokens, row_stride, head_stride, token_stride,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """Write codes `[B, H, T, D_h]`, scales `[B, H, T]` and rounded numbers of one head. Grid: (T, H, B)."""
    HALF: tl.constexpr = WIDTH // 2
    half = tl.arange(0, HALF)
    token, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    x = x_pointer + row * row_stride + head.to(tl.int64) * head_stride + token.to(tl.int64) * token_stride + half
    low, high = tl.load(x).to(tl.float32), tl.load(x + HALF).to(tl.float32)
    code_low, code_high, scale, low, high = quantized(low, high)
    place = (row * heads + head) * tokens + token
    tl.store(codes_pointer + place * WIDTH + half, code_low)
    tl.store(codes_pointer + place * WIDTH + HALF + half, code_high)
    tl.store(scales_pointer + place, scale.to(tl.float32, bitcast=True).to(tl.bfloat16))
    if y_pointer.dtype.element_ty == tl.float16:  # 65504 is rounded up
        low, high = tl.clamp(low, -65504.0, 65504.0), tl.clamp(high, -65504.0, 65504.0)
    tl.store(y_pointer + place * WIDTH + half, low.to(y_pointer.dtype.element_ty))
    tl.store(y_pointer + place * WIDTH + HALF + half, high.to(y_pointer.dtype.element_ty))


@torch.library.custom_op("vila::quantize_heads", mutates_args=())
def quantize_heads(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`eight_bits.quantize` of `x [B, H, T, D_h]`, heads contiguous, D_h a power of two."""
    rows, heads, tokens, width = x.shape
    assert x.stride(3) == 1
    assert width == triton.next_power_of_2(width)
    codes, y = x.new_empty(x.shape, dtype=torch.uint8), x.new_empty(x.shape)
    scales = x.new_empty(x.shape[:3], dtype=torch.bfloat16)
    if x.numel():
        quantize_kernel[(tokens, heads, rows)](
            x, codes, scales, y, heads, tokens, *x.stride()[:3], WIDTH=width, num_warps=1
        )
    return codes, scales, y


@quantize_heads.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape, dtype=torch.uint8),
        x.new_empty(x.shape[:3], dtype=torch.bfloat16),
        x.new_empty(x.shape),
    )
