"""Products of a few rows of activations and quantized weights, compiled by numba, on all threads.

M rows, N outputs, K inputs, g group size, G = K / g groups, B = N / 16 blocks of outputs (N padded)

Activations are quantized to integers, group by group, so that products are exact:

    x ≈ values · scale,   scale = max|x| / 16383 of each group

Near the largest value of a group, this is 64 times as precise as bfloat16.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vila_quant.kernels.cpu.compiled.compiler import compiled, parallel, prange
from vila_quant.kernels.cpu.compiled.numbers import NOT_FINITE, Numbers, magnitude, nearest, of_bits
from vila_quant.kernels.cpu.compiled.vectors import ROWS, WORD, add_nibble_rows, byte_row, dequantize_nibbles

LARGEST = np.float32(16383)
"""Largest activation: 15 bits with the sign, so that the sums of a group fit into 32 bits (see `vectors`)."""

SMALLEST = np.float32(1e-30)
"""Groups of smaller numbers become zeros, since their scale has no inverse."""

Floats = NDArray[np.float32]


class Nibbles(NamedTuple):
    """An int4 weight: `words [B, K / 8, 16]` int32, `scales [B, G, 16]` float16 as int16, `zeros [B, G, 16]` uint8."""

    words: NDArray[np.int32]
    scales: NDArray[np.int16]
    zeros: NDArray[np.uint8]


class Activations(NamedTuple):
    """Quantized rows: `values [M, K]` int16, `scales [M, G]` float32, and sums of each group, `sums [M, G]` int32."""

    values: NDArray[np.int16]
    scales: Floats
    sums: NDArray[np.int32]


@compiled
def byte_product(x: Floats, weight: NDArray[np.int8], scales: Floats, group_size: int) -> Floats:
    """`x [M, K]`, `weight [N, K]` int8, `scales [N]` -> `[M, N]`; groups are of activations, a multiple of 32."""
    y = np.empty((len(x), len(weight)), np.float32)
    fill_byte_product(weight, scales, whole_numbers(x, group_size), y)
    return y


@parallel
def add_product(weight: Nibbles, a: Activations, y: Floats) -> None:
    """Add the product of `a [M, K]` with the weight, transposed, to `y [M, N]`."""
    for block in prange(len(weight.words)):
        add_block(weight, block, a, y)


@parallel
def fill_byte_product(weight: NDArray[np.int8], scales: Floats, a: Activations, y: Floats) -> None:
    """Write the product of `a [M, K]` with the scaled `weight [N, K]` int8, transposed, to `y [M, N]`."""
    groups = a.scales.shape[1]
    vectors = weight.shape[1] // groups // (2 * ROWS)
    for output in prange(len(weight)):
        for row in range(len(y)):
            product = byte_row(
                weight[output].ctypes.data, a.values[row].ctypes.data, a.scales[row].ctypes.data, groups, vectors
            )
            y[row, output] = product * scales[output]


@parallel
def fill_panel(weight: Nibbles, first: int, panel: Numbers) -> None:
    """Dequantize outputs from block `first` on to `panel [n, K]`; n is a multiple of 16."""
    groups = weight.zeros.shape[1]
    for block in prange(len(panel) // ROWS):
        dequantize_nibbles(
            weight.words[first + block].ctypes.data,
            weight.scales[first + block].ctypes.data,
            weight.zeros[first + block].ctypes.data,
            groups,
            weight.words.shape[1] // groups,
            panel[block * ROWS : (block + 1) * ROWS],
        )


@compiled
def add_block(weight: Nibbles, block: int, a: Activations, y: Floats) -> None:
    """Add the 16 outputs of a block to `y [M, N]`, for every row of activations."""
    groups = weight.zeros.shape[1]
    for row in range(len(y)):
        add_nibble_rows(
            weight.words[block].ctypes.data,
            weight.scales[block].ctypes.data,
            weight.zeros[block].ctypes.data,
            a.values[row].ctypes.data,
            a.scales[row].ctypes.data,
            a.sums[row].ctypes.data,
            groups,
            weight.words.shape[1] // groups,
            y[row, block * ROWS :].ctypes.data,
        )


@compiled
def group_size(weight: Nibbles) -> int:
    """Return g."""
    return weight.words.shape[1] * WORD // weight.zeros.shape[1]


@compiled
def whole_numbers(x: Floats, group_size: int) -> Activations:
    """Quantize `x [M, K]` to integers."""
    rows, inputs = x.shape
    a = empty_activations(rows, inputs, group_size)
    for row in range(rows):
        for group in range(inputs // group_size):
            cut_group(x[row, group * group_size : (group + 1) * group_size], a, row, group)
    return a


@compiled
def empty_activations(rows: int, inputs: int, group_size: int) -> Activations:
    """Return uninitialized activations `[M, K]`."""
    groups = inputs // group_size
    return Activations(
        np.empty((rows, inputs), np.int16), np.empty((rows, groups), np.float32), np.empty((rows, groups), np.int32)
    )


@compiled
def cut_group(x: Floats, a: Activations, row: int, group: int) -> None:
    """Quantize one group `x [g]`. If a value is not finite, the scale is NaN, and so are the results."""
    largest = np.int32(0)
    for i in range(x.size):
        largest = max(largest, magnitude(x[i]))
    scale = of_bits(largest) / LARGEST if largest < NOT_FINITE else np.float32(np.nan)
    inverse = np.float32(1) / scale if scale > SMALLEST else np.float32(0)
    values = a.values[row, group * x.size : (group + 1) * x.size]
    total = np.int32(0)
    for i in range(x.size):
        value = nearest(x[i] * inverse)
        values[i] = value
        total += value
    a.scales[row, group] = scale
    a.sums[row, group] = total
