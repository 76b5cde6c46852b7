"""Products of many rows of activations and int4 weights: tiles of rows share the unpacked weights.

The same integers are multiplied as row by row (`products`), in the same order of groups, so results are the same to the
bit: reading a prompt and decoding it agree.

M rows, N outputs, K inputs, g group size, G = K / g groups, R rows of a tile, C tiles
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vila_quant.kernels.cpu.compiled.compiler import compiled, parallel, prange
from vila_quant.kernels.cpu.compiled.products import (
    Floats,
    Nibbles,
    add_product,
    cut_group,
    empty_activations,
    group_size,
    whole_numbers,
)
from vila_quant.kernels.cpu.compiled.vectors import ROWS, TILE, add_nibble_tile

WORTH_A_TILE = TILE // 3
"""From this many rows on, a tile is filled up with zeros. For fewer, one by one is faster."""

ACTIVATIONS_AT_ONCE = 1 << 19
"""Bytes of activations that stay in the cache of a core (L2) while the weights pass by."""


class Tiles(NamedTuple):
    """Quantized rows in tiles: `pairs [C, K / 2, R]` int32 of two int16 each, `scales [C R, G]`, `sums [C R, G]`."""

    pairs: NDArray[np.int32]
    scales: Floats
    sums: NDArray[np.int32]


@compiled
def nibble_product(x: Floats, weight: Nibbles) -> Floats:
    """`x [M, K]`, `weight [N, K]` -> `[M, N]`."""
    tiles = (len(x) + TILE - WORTH_A_TILE) // TILE
    rows = min(tiles * TILE, len(x))  # in tiles; the others come one by one
    y = np.zeros((max(tiles * TILE, len(x)), len(weight.words) * ROWS), np.float32)
    if tiles:
        add_tiles(weight, in_tiles(x[:rows], tiles, group_size(weight)), y)
    if rows < len(x):
        add_product(weight, whole_numbers(x[rows:], group_size(weight)), y[rows:])
    return y[: len(x)]


@compiled
def in_tiles(x: Floats, tiles: int, group_size: int) -> Tiles:
    """Quantize `x [M, K]`, and fill up the last tile with zeros."""
    inputs = x.shape[1]
    groups = inputs // group_size
    a = Tiles(
        np.zeros((tiles, inputs // 2, TILE), np.int32),
        np.zeros((tiles * TILE, groups), np.float32),
        np.zeros((tiles * TILE, groups), np.int32),
    )
    fill_tiles(x, a)
    return a


@parallel
def fill_tiles(x: Floats, a: Tiles) -> None:
    """Quantize `x [M, K]` into the first M rows of the tiles."""
    for tile in prange(len(a.pairs)):
        fill_tile(x[tile * TILE : (tile + 1) * TILE], a, np.int64(tile))  # numba counts with unsigned numbers


@compiled
def fill_tile(x: Floats, a: Tiles, tile: np.int64) -> None:
    """Quantize up to R rows `x` into the first rows of a tile."""
    groups = a.scales.shape[1]
    size = x.shape[1] // groups
    one = empty_activations(1, x.shape[1], size)
    for row in range(len(x)):
        for group in range(groups):
            cut_group(x[row, group * size : (group + 1) * size], one, 0, group)
        a.pairs[tile, :, row] = one.values.view(np.int32)[0]
        a.scales[tile * TILE + row] = one.scales[0]
        a.sums[tile * TILE + row] = one.sums[0]


@parallel
def add_tiles(weight: Nibbles, a: Tiles, y: Floats) -> None:
    """Add the product of the tiles with the weight, transposed, to the first C R rows of `y [M, N]`."""
    at_once = max(1, ACTIVATIONS_AT_ONCE // (a.pairs[0].nbytes))
    for first in range(0, len(a.pairs), at_once):
        last = min(first + at_once, len(a.pairs))
        for block in prange(len(weight.words)):
            for tile in range(first, last):
                add_tile(weight, block, a, tile, y)


@compiled
def add_tile(weight: Nibbles, block: int, a: Tiles, tile: int, y: Floats) -> None:
    """Add the 16 outputs of a block for the rows of a tile."""
    groups = weight.zeros.shape[1]
    add_nibble_tile(
        weight.words[block].ctypes.data,
        weight.scales[block].ctypes.data,
        weight.zeros[block].ctypes.data,
        a.pairs[tile].ctypes.data,
        a.scales[tile * TILE].ctypes.data,
        a.sums[tile * TILE].ctypes.data,
        groups,
        weight.words.shape[1] // groups,
        y[tile * TILE, block * ROWS :].ctypes.data,
        y.strides[0],
    )
