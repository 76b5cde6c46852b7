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
from vila_quant.kernels.cpu.compiled.vectors import (
    PAIRS_AT_ONCE,
    ROWS,
    TILE,
    WORD,
    add_tile_of_a_group,
    unpack_nibbles,
)

WORTH_A_TILE = TILE // 3
"""From this many rows on, a tile is filled up with zeros. For fewer, one by one is faster."""

BLOCKS_AT_ONCE = 4
"""Blocks of outputs for which a thread reads the activations once. Their unpacked weights, 16 KB for a group of 128,
stay in the L1 cache while all tiles pass by."""


class Tiles(NamedTuple):
    """Quantized rows in tiles: `pairs [G, C, g / 2, R]` int32 of two int16 each, `scales` and `sums` `[G, C, R]`."""

    pairs: NDArray[np.int32]
    scales: Floats
    sums: NDArray[np.int32]


@compiled
def nibble_product(x: Floats, weight: Nibbles, threads: int) -> Floats:
    """`x [M, K]`, `weight [N, K]` -> `[M, N]`; `threads` is the number that a `prange` uses."""
    tiles = (len(x) + TILE - WORTH_A_TILE) // TILE
    rows = min(tiles * TILE, len(x))  # in tiles; the others come one by one
    y = np.empty((len(x), len(weight.words) * ROWS), np.float32)
    if tiles:
        fill_product(weight, in_tiles(x[:rows], tiles, group_size(weight)), threads, y[:rows])
    if rows < len(x):
        y[rows:] = 0
        add_product(weight, whole_numbers(x[rows:], group_size(weight)), y[rows:])
    return y


@compiled
def in_tiles(x: Floats, tiles: int, group_size: int) -> Tiles:
    """Quantize `x [M, K]`, and fill up the last tile with zeros."""
    groups = x.shape[1] // group_size
    a = Tiles(
        np.empty((groups, tiles, group_size // 2, TILE), np.int32),
        np.empty((groups, tiles, TILE), np.float32),
        np.empty((groups, tiles, TILE), np.int32),
    )
    fill_tiles(x, a)
    return a


@parallel
def fill_tiles(x: Floats, a: Tiles) -> None:
    """Quantize `x [M, K]` into the first M rows of the tiles, and write zeros to the others."""
    for tile in prange(a.pairs.shape[1]):
        fill_tile(x[tile * TILE : (tile + 1) * TILE], a, np.int64(tile))  # numba counts with unsigned numbers


@compiled
def fill_tile(x: Floats, a: Tiles, tile: np.int64) -> None:
    """Quantize up to R rows `x` into the first rows of a tile."""
    groups, _, pairs, _ = a.pairs.shape
    size = 2 * pairs
    one = empty_activations(1, size, size)
    for group in range(groups):
        for row in range(TILE):
            if row < len(x):
                cut_group(x[row, group * size : (group + 1) * size], one, 0, 0)
                a.pairs[group, tile, :, row] = one.values.view(np.int32)[0]
                a.scales[group, tile, row] = one.scales[0, 0]
                a.sums[group, tile, row] = one.sums[0, 0]
            else:
                a.pairs[group, tile, :, row] = 0
                a.scales[group, tile, row] = 0
                a.sums[group, tile, row] = 0


@parallel
def fill_product(weight: Nibbles, a: Tiles, threads: int, y: Floats) -> None:
    """Write the product of the tiles with the weight, transposed, to `y [M, N]`."""
    blocks = len(weight.words)
    at_once = max(1, min(BLOCKS_AT_ONCE, blocks // threads))
    for turn in prange((blocks + at_once - 1) // at_once):
        first = np.int64(turn) * at_once
        fill_blocks(weight, first, np.int64(min(first + at_once, blocks)), a, y)


@compiled
def fill_blocks(weight: Nibbles, first: np.int64, last: np.int64, a: Tiles, y: Floats) -> None:
    """Write the outputs of some blocks for all rows."""
    groups, tiles, pairs, _ = a.pairs.shape
    words = 2 * pairs // WORD
    count = last - first
    weights = np.empty((count, pairs, ROWS), np.int32)
    sums = np.zeros((tiles, count, TILE, ROWS), np.float32)
    for group in range(groups):
        for block in range(count):
            unpack_nibbles(weight.words[first + block, group * words].ctypes.data, words, weights[block].ctypes.data)
        for tile in range(tiles):
            for block in range(count):
                add_tile_of_a_group(
                    weights[block].ctypes.data,
                    weight.scales[first + block, group].ctypes.data,
                    weight.zeros[first + block, group].ctypes.data,
                    a.pairs[group, tile].ctypes.data,
                    a.scales[group, tile].ctypes.data,
                    a.sums[group, tile].ctypes.data,
                    pairs // PAIRS_AT_ONCE,
                    sums[tile, block].ctypes.data,
                )
    for row in range(len(y)):
        for block in range(count):
            start = (first + block) * ROWS
            y[row, start : start + ROWS] = sums[row // TILE, block, row % TILE]
