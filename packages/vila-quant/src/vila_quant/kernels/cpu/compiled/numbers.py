"""Scalar functions that LLVM can vectorize: an exponential, and bfloat16, which numba does not support."""

# numba's code generation has no types.
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from math import factorial

import numpy as np
from llvmlite import ir
from numba import types
from numpy.typing import NDArray

from vila_quant.kernels.cpu.compiled.compiler import compiled, vector_code

Numbers = NDArray[np.float32] | NDArray[np.uint16]
"""Float32, or bfloat16 as uint16, which numba does not support."""

LOG2_E, LN_2 = np.float32(1.4426950408889634), np.float32(0.6931471805599453)
LOWEST, HIGHEST = np.float32(-87), np.float32(88)
"""Exponents whose powers of e are normal numbers in float32."""
R2, R3, R4, R5, R6 = (np.float32(1 / factorial(n)) for n in range(2, 7))
"""Coefficients of the Taylor series."""


NOT_FINITE = np.int32(0x7F800000)
"""See `magnitude`."""


@compiled
def exp(x: float) -> np.float32:
    """Return the exponential of a float32 (relative error 3e-7) as 2ⁿ eʳ, with a Taylor series for |r| ≤ ln 2 / 2."""
    bounded = min(max(x, LOWEST), HIGHEST)
    n = nearest(bounded * LOG2_E)
    r = bounded - np.float32(n) * LN_2
    power = R6 * r + R5
    power = power * r + R4
    power = power * r + R3
    power = power * r + R2
    power = power * r + np.float32(1)
    power = power * r + np.float32(1)
    return power * power_of_two(n) + x * np.float32(0)


@vector_code
def nearest(typing, number):
    """Return a float32 as the nearest int32, ties to even."""

    def generate(context, builder, signature, arguments):
        rounded = builder.call(builder.module.declare_intrinsic("llvm.rint", [ir.FloatType()]), arguments)
        return builder.fptosi(rounded, ir.IntType(32))

    return types.int32(types.float32), generate


@vector_code
def magnitude(typing, number):
    """Return the bits of |number| as int32: ordered by magnitude; from `NOT_FINITE` on, not finite."""

    def generate(context, builder, signature, arguments):
        return builder.and_(builder.bitcast(arguments[0], ir.IntType(32)), ir.IntType(32)(0x7FFFFFFF))

    return types.int32(types.float32), generate


@vector_code
def of_bits(typing, bits):
    """Return the float32 with these bits."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@vector_code
def power_of_two(typing, n):
    """Return 2ⁿ for an int32 in -126 … 127, as float32."""

    def generate(context, builder, signature, arguments):
        exponent = builder.add(arguments[0], ir.IntType(32)(127))
        return builder.bitcast(builder.shl(exponent, ir.IntType(32)(23)), ir.FloatType())

    return types.float32(types.int32), generate


@vector_code
def as_float(typing, number):
    """Return a float32, or a bfloat16 given as uint16, as float32."""

    def generate(context, builder, signature, arguments):
        if number == types.float32:
            return arguments[0]
        wide = builder.zext(arguments[0], ir.IntType(32))
        return builder.bitcast(builder.shl(wide, ir.IntType(32)(16)), ir.FloatType())

    return types.float32(number), generate


@vector_code
def rounded_like(typing, number, like):
    """Return a float32 in the dtype of `like`: float32, or bfloat16 as uint16, rounded to the nearest, ties to even."""

    def generate(context, builder, signature, arguments):
        b, i32 = builder, ir.IntType(32)
        if like == types.float32:
            return arguments[0]
        bits = b.bitcast(arguments[0], i32)
        odd = b.and_(b.lshr(bits, i32(16)), i32(1))
        nearest = b.lshr(b.add(bits, b.add(odd, i32(0x7FFF))), i32(16))
        quiet = b.or_(b.lshr(bits, i32(16)), i32(0x40))
        is_nan = b.fcmp_unordered("uno", arguments[0], arguments[0])
        return b.trunc(b.select(is_nan, quiet, nearest), ir.IntType(16))

    return like(number, like), generate
