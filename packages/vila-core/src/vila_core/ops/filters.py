"""Top-k and top-p on the device: the smallest logit that they keep, found by all multiprocessors together.

B rows, V vocabulary, N blocks of a row

Top-k keeps the largest logits, ties included; top-p keeps of these the likeliest until they reach the probability p
(see `reference.kept_tokens`). Both look for the largest threshold from which on the logits number, or weigh, enough.
fp32 numbers are ordered like integers, their keys, so this is a search over the bits of a key, four at a time.

**Pass** (`search_kernel`, grid (N, B)). Every block adds up its own logits from each of 16 thresholds on, `partial`;
the next pass adds up the blocks of a row, always in the same order, and so knows the next bits. Logits in 16 bits have
keys of 16 (bf16) or 19 (fp16) bits that matter, which takes 4 or 5 passes.
"""

# Triton has no types: a kernel's arguments and its launch are not checked. Compile-time constants are in capitals.
# ruff: noqa: N803
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportArgumentType=false, reportIndexIssue=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from vila_core.ops.support import launches_early

BLOCK = 2048
THRESHOLDS = 16
LOWEST = tl.constexpr(-(2**31))
PASSES = {torch.bfloat16: 4, torch.float16: 5, torch.float32: 8}


@triton.jit
def ordered(value):
    """Return an integer for each fp32 number, in the same order: its key."""
    bits = value.to(tl.int32, bitcast=True)
    return tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)


@triton.jit
def load_logits(pointer, row, column, vocabulary):
    """Return logits in fp32; -inf past the end and for NaN."""
    x = tl.load(pointer + row * vocabulary + column, mask=column < vocabulary, other=float("-inf")).to(tl.float32)
    return tl.where(x == x, x, float("-inf"))


@triton.jit
def _mass(partial_pointer, row, blocks, BLOCKS: tl.constexpr):
    """Return the sums of a row's blocks, `[16]`."""
    block, threshold = tl.arange(0, BLOCKS), tl.arange(0, 16)
    place = (row * blocks + block)[:, None] * 16 + threshold[None, :]
    return tl.sum(tl.load(partial_pointer + place, mask=(block < blocks)[:, None], other=0.0), axis=0)


@triton.jit
def found(
    partial_pointer, low_pointer, wanted_pointer, row, rows, blocks, size,
    PASS: tl.constexpr, COUNT: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Return the lower bound of the threshold after pass `PASS`, and how much is wanted.

    `wanted_pointer` holds k, or p; of p it is the share in what weighs at all, which the first pass adds up. `size`:
    elements of `partial` for one pass. `low_pointer [passes, rows]`: lower bounds before each pass.
    """
    mass = _mass(partial_pointer + PASS * size, row, blocks, BLOCKS)
    wanted = tl.load(wanted_pointer + row).to(tl.float32)
    if not COUNT:
        all_mass = mass
        if PASS:
            all_mass = _mass(partial_pointer, row, blocks, BLOCKS)
        wanted *= tl.sum(tl.where(tl.arange(0, 16) == 0, all_mass, 0.0), axis=0)
    enough = tl.sum((mass >= wanted).to(tl.int32), axis=0)  # masses fall with the threshold
    step = 1 << (28 - 4 * PASS)
    return tl.load(low_pointer + PASS * rows + row) + (tl.maximum(enough, 1) - 1) * step


@triton.jit
def is_needed(temperature, wanted, vocabulary, COUNT: tl.constexpr):
    """Return whether a row with this setting filters at all."""
    if COUNT:
        return (temperature > 0) & (wanted > 0) & (wanted < vocabulary)
    else:
        return (temperature > 0) & (wanted < 1.0)


@triton.jit
def search_kernel(
    logits_pointer, maxima_pointer, temperature_pointer, wanted_pointer, floor_pointer, partial_pointer, low_pointer,
    vocabulary, rows, blocks, size,
    PASS: tl.constexpr, COUNT: tl.constexpr, FLOOR: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """One pass: write `partial [PASS, row, block, 16]` and `low [PASS, row]`.

    Of logits below the row's `floor` (with FLOOR) nothing is counted. A block of the maxima is a block of the logits.
    """
    row = tl.program_id(1).to(tl.int64)
    block = tl.program_id(0)
    column = block * BLOCK + tl.arange(0, BLOCK)
    temperature = tl.load(temperature_pointer + row)
    needed = is_needed(temperature, tl.load(wanted_pointer + row), vocabulary, COUNT)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    if needed:
        if PASS:
            low = found(partial_pointer, low_pointer, wanted_pointer, row, rows, blocks, size, PASS - 1, COUNT, BLOCKS)
        else:
            low = tl.full([], LOWEST, tl.int32)
        if block == 0:
            tl.store(low_pointer + PASS * rows + row, low)
        x = load_logits(logits_pointer, row, column, vocabulary)
        key = ordered(x)
        counted = column < vocabulary
        if FLOOR:
            counted &= key >= tl.load(floor_pointer + row)
        if COUNT:
            weight = tl.where(counted, 1.0, 0.0)
        else:
            of_block = tl.arange(0, BLOCKS)
            maxima = tl.load(maxima_pointer + row * blocks + of_block, mask=of_block < blocks, other=float("-inf"))
            weight = tl.where(counted, tl.exp((x - tl.max(maxima, axis=0)) / temperature), 0.0)
        threshold = low + tl.arange(0, 16) * (1 << (28 - 4 * PASS))
        mass = tl.sum(tl.where(key[None, :] >= threshold[:, None], weight[None, :], 0.0), axis=1)
        place = (row * blocks + block) * 16 + tl.arange(0, 16)
        tl.store(partial_pointer + PASS * size + place, mass)


@triton.jit
def floor_kernel(
    temperature_pointer, wanted_pointer, earlier_pointer, partial_pointer, low_pointer, floor_pointer, vocabulary, rows,
    blocks, size,
    LAST: tl.constexpr, COUNT: tl.constexpr, EARLIER: tl.constexpr, BLOCKS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Write the key of the smallest logit that a search keeps, at least that of the search before (EARLIER)."""
    row = tl.program_id(0).to(tl.int64)
    needed = is_needed(tl.load(temperature_pointer + row), tl.load(wanted_pointer + row), vocabulary, COUNT)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    floor = tl.full([], LOWEST, tl.int32)
    if EARLIER:
        floor = tl.load(earlier_pointer + row)
    if needed:
        low = found(partial_pointer, low_pointer, wanted_pointer, row, rows, blocks, size, LAST, COUNT, BLOCKS)
        floor = tl.maximum(floor, low)
    tl.store(floor_pointer + row, floor)


def smallest_kept(
    logits: Tensor,
    maxima: Tensor,
    temperature: Tensor,
    top_k: Tensor | None,
    top_p: Tensor | None,
) -> Tensor | None:
    """Return the key (see `ordered`) of the smallest logit that each row keeps, int32 `[B]`; None if it keeps all.

    Args:
        logits: `[B, V]` contiguous; NaN counts as -inf.
        maxima: float32 `[B, N]`: the largest logit of every `BLOCK`.
        temperature: float32 `[B]`; rows with 0 keep all.
        top_k: int32 `[B]`; 0 keeps all.
        top_p: float32 `[B]`; 1 keeps all.
    """
    floor: Tensor | None = None
    for wanted, is_count in ((top_k, True), (top_p, False)):
        if wanted is not None:
            floor = _search(logits, maxima, temperature, wanted, floor, is_count=is_count)
    return floor


def _search(
    logits: Tensor, maxima: Tensor, temperature: Tensor, wanted: Tensor, floor: Tensor | None, *, is_count: bool
) -> Tensor:
    (rows, vocabulary), blocks = logits.shape, maxima.shape[1]
    assert logits.is_contiguous()
    assert blocks == triton.cdiv(vocabulary, BLOCK)
    passes = PASSES[logits.dtype]
    size = rows * blocks * THRESHOLDS
    partial = logits.new_empty(passes, size, dtype=torch.float32)
    low = logits.new_empty(passes, rows, dtype=torch.int32)
    result = logits.new_empty(rows, dtype=torch.int32)
    pdl = launches_early(logits.device)
    launch = {"launch_pdl": True} if pdl else {}
    common = {"COUNT": is_count, "BLOCKS": triton.next_power_of_2(blocks), "PDL": pdl}
    for number in range(passes):
        search_kernel[(blocks, rows)](
            logits, maxima, temperature, wanted, low if floor is None else floor, partial, low, vocabulary, rows,
            blocks, size, PASS=number, FLOOR=floor is not None, BLOCK=BLOCK, num_warps=4, **common, **launch,
        )  # fmt: skip
    floor_kernel[(rows,)](
        temperature, wanted, low if floor is None else floor, partial, low, result, vocabulary, rows, blocks, size,
        LAST=passes - 1, EARLIER=floor is not None, num_warps=4, **common, **launch,
    )  # fmt: skip
    return result
