"""Compiled attention of one new token to the cache.

B batch, H query heads, H_kv key/value heads, G = H / H_kv, S cached + new tokens, D_h head width
"""

import numpy as np

from vila_quant.kernels.cpu.compiled.compiler import compiled, parallel, prange
from vila_quant.kernels.cpu.compiled.numbers import Numbers, as_float, exp, rounded_like
from vila_quant.kernels.cpu.compiled.products import Floats

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
def write(cache: Numbers, slot: int, heads: Floats) -> None:
    """Write `[B, H_kv, D_h]` to a slot of the cache, rounded to its dtype."""
    rows, count, width = heads.shape
    for row in range(rows):
        for head in range(count):
            for i in range(width):
                cache[row, head, slot, i] = rounded_like(heads[row, head, i], cache[row, head, slot, i])


@compiled
def attend(q: Floats, keys: Numbers, values: Numbers, length: int) -> Floats:
    """Attention of `q` `[B, H, D_h]` to the first `length` (S) slots -> `[B, H, D_h]`."""
    scores = np.empty((q.shape[0], q.shape[1], length), np.float32)
    fill_scores(q, keys, scores)
    softmax(scores.reshape(-1, length))
    y = np.zeros_like(q)
    add_values(scores, values, y)
    return y


@parallel
def fill_scores(q: Floats, keys: Numbers, scores: Floats) -> None:
    """Write `q · k / √D_h` to `scores [B, H, S]`. Each key is read once for all its queries."""
    heads, width, length = keys.shape[1], q.shape[2], scores.shape[2]
    group = q.shape[1] // heads
    turns = (length + TOKENS_A_TURN - 1) // TOKENS_A_TURN
    factor = np.float32(1) / np.sqrt(np.float32(width))
    for turn in prange(q.shape[0] * heads * turns):
        row, head, first = turn // turns // heads, turn // turns % heads, turn % turns * TOKENS_A_TURN
        key = np.empty(width, np.float32)
        for slot in range(first, min(first + TOKENS_A_TURN, length)):
            for i in range(width):
                key[i] = as_float(keys[row, head, slot, i])
            for query in range(head * group, (head + 1) * group):
                product = np.float32(0)
                for i in range(width):
                    product += q[row, query, i] * key[i]
                scores[row, query, slot] = product * factor


@parallel
def softmax(scores: Floats) -> None:
    """Normalize each row `[…, S]` in place."""
    for row in prange(len(scores)):
        line = scores[row]
        highest = line.max()
        total = np.float32(0)
        for slot in range(line.size):
            line[slot] = exp(line[slot] - highest)
            total += line[slot]
        for slot in range(line.size):
            line[slot] /= total


@parallel
def add_values(scores: Floats, values: Numbers, y: Floats) -> None:
    """Add the values, weighted by `scores [B, H, S]`, to `y [B, H, D_h]`."""
    heads, width, length = values.shape[1], y.shape[2], scores.shape[2]
    group = y.shape[1] // heads
    turns = (width + COLUMNS_A_TURN - 1) // COLUMNS_A_TURN
    for turn in prange(y.shape[0] * heads * turns):
        row, head, first = turn // turns // heads, turn // turns % heads, turn % turns * COLUMNS_A_TURN
        last = min(first + COLUMNS_A_TURN, width)
        for query in range(head * group, (head + 1) * group):
            total = y[row, query, first:last]
            for slot in range(length):
                value = values[row, head, slot, first:last]
                for i in range(len(total)):
                    total[i] += scores[row, query, slot] * as_float(value[i])
