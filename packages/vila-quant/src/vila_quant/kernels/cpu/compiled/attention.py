"""Compiled attention of one new token of each row to a cache in pages.

B rows, H query heads, H_kv key/value heads, G = H / H_kv, N pages of P slots, S slots of the longest row,
D_h head width
"""

import numpy as np
from numpy.typing import NDArray

from vila_quant.kernels.cpu.compiled.compiler import compiled, parallel, prange
from vila_quant.kernels.cpu.compiled.numbers import NOT_FINITE, Numbers, as_float, exp, magnitude, rounded_like
from vila_quant.kernels.cpu.compiled.products import Floats

Integers = NDArray[np.int64]

TOKENS_A_TURN = 64
COLUMNS_A_TURN = 32


@compiled
def rotate(heads: Floats, cos: Floats, sin: Floats) -> None:
    """Rotate `[B, H, D_h]` in place by `[B or 1, D_h]`; the two halves of a head are the real and imaginary parts."""
    half = heads.shape[2] // 2
    for row in range(heads.shape[0]):
        turn = row % len(cos)
        for head in range(heads.shape[1]):
            for i in range(half):
                real, imaginary = heads[row, head, i], heads[row, head, i + half]
                heads[row, head, i] = real * cos[turn, i] - imaginary * sin[turn, i]
                heads[row, head, i + half] = imaginary * cos[turn, i + half] + real * sin[turn, i + half]


@compiled
def write(cache: Numbers, table: Integers, lengths: Integers, heads: Floats) -> None:
    """Write `[B, H_kv, D_h]` to the last slot of each row, rounded to the cache's dtype.

    What is not finite is written as 0: the next owner of a page may read it with a weight of 0, and 0 · NaN is NaN.
    """
    rows, count, width = heads.shape
    size = cache.shape[2]
    for row in range(rows):
        slot = lengths[row] - 1
        page = table[row, slot // size]
        for head in range(count):
            line = cache[page, head, slot % size]
            for i in range(width):
                number = heads[row, head, i]
                line[i] = rounded_like(number if magnitude(number) < NOT_FINITE else np.float32(0), line[i])


@compiled
def attend(q: Floats, keys: Numbers, values: Numbers, table: Integers, lengths: Integers) -> Floats:
    """Attention of `q` `[B, H, D_h]` to the slots of each row -> `[B, H, D_h]`.

    `keys` and `values` are pages `[N, H_kv, P, D_h]`; `table` `[B, pages of a row]` says which a row has, and `lengths`
    `[B]` how many slots of them are filled.
    """
    scores = np.empty((q.shape[0], q.shape[1], lengths.max()), np.float32)
    fill_scores(q, keys, table, lengths, scores)
    softmax(scores, lengths)
    y = np.zeros_like(q)
    add_values(scores, values, table, lengths, y)
    return y


@parallel
def fill_scores(q: Floats, keys: Numbers, table: Integers, lengths: Integers, scores: Floats) -> None:
    """Write `q · k / √D_h` to `scores [B, H, S]`. Each key is read once for all its queries."""
    heads, size, width = keys.shape[1], keys.shape[2], q.shape[2]
    group = q.shape[1] // heads
    turns = (scores.shape[2] + TOKENS_A_TURN - 1) // TOKENS_A_TURN
    factor = np.float32(1) / np.sqrt(np.float32(width))
    for turn in prange(q.shape[0] * heads * turns):
        row, head, first = turn // turns // heads, turn // turns % heads, turn % turns * TOKENS_A_TURN
        key = np.empty(width, np.float32)
        for slot in range(first, min(first + TOKENS_A_TURN, lengths[row])):
            line = keys[table[row, slot // size], head, slot % size]
            for i in range(width):
                key[i] = as_float(line[i])
            for query in range(head * group, (head + 1) * group):
                product = np.float32(0)
                for i in range(width):
                    product += q[row, query, i] * key[i]
                scores[row, query, slot] = product * factor


@parallel
def softmax(scores: Floats, lengths: Integers) -> None:
    """Normalize the scores of each query in place, up to the length of its row."""
    heads = scores.shape[1]
    for turn in prange(len(scores) * heads):
        line = scores[turn // heads, turn % heads, : lengths[turn // heads]]
        highest = line.max()
        total = np.float32(0)
        for slot in range(line.size):
            line[slot] = exp(line[slot] - highest)
            total += line[slot]
        for slot in range(line.size):
            line[slot] /= total


@parallel
def add_values(scores: Floats, values: Numbers, table: Integers, lengths: Integers, y: Floats) -> None:
    """Add the values, weighted by `scores [B, H, S]`, to `y [B, H, D_h]`."""
    heads, size, width = values.shape[1], values.shape[2], y.shape[2]
    group = y.shape[1] // heads
    turns = (width + COLUMNS_A_TURN - 1) // COLUMNS_A_TURN
    for turn in prange(y.shape[0] * heads * turns):
        row, head, first = turn // turns // heads, turn // turns % heads, turn % turns * COLUMNS_A_TURN
        last = min(first + COLUMNS_A_TURN, width)
        for query in range(head * group, (head + 1) * group):
            total = y[row, query, first:last]
            for slot in range(lengths[row]):
                value = values[table[row, slot // size], head, slot % size, first:last]
                for i in range(len(total)):
                    total[i] += scores[row, query, slot] * as_float(value[i])
