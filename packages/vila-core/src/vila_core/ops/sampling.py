"""Sampling on the device: temperature, top-k, top-p, penalties, biases and grammars, each row with its own settings.

B rows, V vocabulary, N blocks of a row

    token = argmax_v(logit_v + temperature · noise_v) over the tokens that the grammar, top-k and top-p keep

With noise = -log(-log(u)), u uniform, this samples from the softmax (Gumbel-max). The noise is Philox of the row's
seed, the position of the new token and v, so a row's answer depends neither on its batch nor on when it joined.

**Kernels.** `prepare_kernel` applies penalties and masks (only if some row needs it) and finds the largest logit of
each block; `filters` finds the smallest kept logit; `argmax_kernel` and `final_kernel` choose the token, check that the
logits are usable, and advance the row. Grids (N, B), the last (B,). Reference: `reference.choose_tokens`.
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

from vila_core.ops.filters import BLOCK, load_logits, ordered, smallest_kept
from vila_core.ops.reference import UNUSABLE
from vila_core.ops.support import launches_early

NO_TOKEN = tl.constexpr(UNUSABLE)


@triton.jit
def prepare_kernel(
    logits_pointer, penalty_pointer, presence_pointer, frequency_pointer, counts_pointer, bias_pointer, allowed_pointer,
    ready_pointer, maxima_pointer, vocabulary, words,
    PENALIZES: tl.constexpr, MASKS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Write logits with penalties, biases and masks applied (if any are), and the largest of each block."""
    row = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = column < vocabulary
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    x = load_logits(logits_pointer, row, column, vocabulary)
    if PENALIZES:
        penalty = tl.load(penalty_pointer + row)
        presence = tl.load(presence_pointer + row)
        frequency = tl.load(frequency_pointer + row)
        count = tl.load(counts_pointer + row * vocabulary + column, mask=inside, other=0)
        bias = tl.load(bias_pointer + row * vocabulary + column, mask=inside, other=0.0)
        scaled = tl.where(x < 0, x * penalty, x / penalty)
        x = tl.where(count > 0, scaled - presence - count * frequency, x) + bias
    if MASKS:
        word = tl.load(allowed_pointer + row * words + column // 32, mask=inside, other=0)
        x = tl.where(((word >> (column % 32)) & 1) != 0, x, float("-inf"))
    if PENALIZES or MASKS:
        tl.store(ready_pointer + row * vocabulary + column, x, mask=inside)
    tl.store(maxima_pointer + row * tl.num_programs(0) + tl.program_id(0), tl.max(x, axis=0))


@triton.jit
def argmax_kernel(
    logits_pointer, ready_pointer, temperature_pointer, seed_pointer, positions_pointer, floor_pointer, value_pointer,
    index_pointer, lowest_pointer, highest_pointer, vocabulary, ahead,
    FILTER: tl.constexpr, NOISE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Write the best token of each block, and its smallest and largest logit (infinite if one is not finite).

    NOISE: some row has a temperature above 0. `ahead`: the new token's position is so much after `positions`.
    """
    row = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = column < vocabulary
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    raw = tl.load(logits_pointer + row * vocabulary + column, mask=inside, other=0.0).to(tl.float32)
    is_finite = tl.abs(raw) < float("inf")  # false for NaN
    place = row * tl.num_programs(0) + tl.program_id(0)
    lowest = tl.min(tl.where(inside & is_finite, raw, float("inf")), axis=0)
    highest = tl.max(tl.where(inside, tl.where(is_finite, raw, float("inf")), float("-inf")), axis=0)
    tl.store(lowest_pointer + place, lowest)
    tl.store(highest_pointer + place, highest)
    x = load_logits(ready_pointer, row, column, vocabulary)
    if NOISE:
        temperature = tl.load(temperature_pointer + row)
        seed = tl.load(seed_pointer + row)
        position = tl.load(positions_pointer + row).to(tl.int32) + ahead
        if FILTER:
            x = tl.where(ordered(x) >= tl.load(floor_pointer + row), x, float("-inf"))
        zero = column * 0
        bits, _, _, _ = tl.philox(seed, column, zero + position, zero, zero)
        uniform = tl.maximum(tl.uint_to_uniform_float(bits), 1e-10)
        noise = -tl.log(-tl.log(uniform))
        x = tl.where(temperature > 0, x + temperature * noise, x)  # logits / temperature + noise could overflow
    best = tl.max(x, axis=0)
    tl.store(value_pointer + place, best)
    index = tl.min(tl.where((x == best) & inside, column, 2147483647), axis=0)
    tl.store(index_pointer + place, index)


@triton.jit
def final_kernel(
    value_pointer, index_pointer, lowest_pointer, highest_pointer, positions_pointer, counts_pointer, ids_pointer,
    chosen_pointer, blocks, vocabulary, ahead, BLOCKS: tl.constexpr, PENALIZES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Choose the best of the blocks' tokens, of equal ones the first, and advance the row."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, BLOCKS)
    inside = block < blocks
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    position = tl.load(positions_pointer + row)
    value = tl.load(value_pointer + row * blocks + block, mask=inside, other=float("-inf"))
    index = tl.load(index_pointer + row * blocks + block, mask=inside, other=2147483647)
    lowest = tl.min(tl.load(lowest_pointer + row * blocks + block, mask=inside, other=float("inf")), axis=0)
    highest = tl.max(tl.load(highest_pointer + row * blocks + block, mask=inside, other=float("-inf")), axis=0)
    best = tl.min(tl.where(value == tl.max(value, axis=0), index, 2147483647), axis=0)
    best = tl.where(best < vocabulary, best, 0).to(tl.int64)
    is_usable = (highest < float("inf")) & ((lowest < highest) | (vocabulary == 1)) & (position >= 0)
    tl.store(chosen_pointer + row, tl.where(is_usable, best, NO_TOKEN))
    if position >= 0:
        tl.store(ids_pointer + row, best)
        tl.store(positions_pointer + row, position + ahead)
        if PENALIZES:
            place = counts_pointer + row * vocabulary + best
            tl.store(place, tl.load(place) + 1)


@torch.library.custom_op("vila::choose_tokens", mutates_args=("ids", "positions", "counts"))
def choose_tokens(
    logits: Tensor,
    ids: Tensor,
    positions: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    seeds: Tensor,
    penalty: Tensor,
    presence: Tensor,
    frequency: Tensor,
    counts: Tensor,
    bias: Tensor,
    allowed: Tensor,
    ahead: int,
    draws: bool,
    uses_top_k: bool,
    uses_top_p: bool,
    penalizes: bool,
    masks: bool,
) -> Tensor:
    """Choose a token for each row; see `reference.choose_tokens`. The flags say what at least one row needs."""
    rows, vocabulary = logits.shape
    blocks = triton.cdiv(vocabulary, BLOCK)
    chosen = logits.new_empty(rows, dtype=torch.int64)
    if not rows:
        return chosen
    assert logits.is_contiguous()
    assert counts.shape[1] == bias.shape[1] == vocabulary
    maxima, value, lowest, highest = (logits.new_empty(rows, blocks, dtype=torch.float32) for _ in range(4))
    index = logits.new_empty(rows, blocks, dtype=torch.int32)
    pdl = launches_early(logits.device)
    launch = {"launch_pdl": True} if pdl else {}
    changes, filters = penalizes or masks, draws and (uses_top_k or uses_top_p)
    ready = logits.new_empty(logits.shape, dtype=torch.float32) if changes else logits
    if changes or filters:
        prepare_kernel[(blocks, rows)](
            logits, penalty, presence, frequency, counts, bias, allowed, ready, maxima, vocabulary, allowed.shape[1],
            PENALIZES=penalizes, MASKS=masks, BLOCK=BLOCK, PDL=pdl, num_warps=4, **launch,
        )  # fmt: skip
    floor = None
    if filters:
        floor = smallest_kept(ready, maxima, temperature, top_k if uses_top_k else None, top_p if uses_top_p else None)
    argmax_kernel[(blocks, rows)](
        logits, ready, temperature, seeds, positions, index if floor is None else floor, value, index, lowest, highest,
        vocabulary, ahead, FILTER=filters, NOISE=draws, BLOCK=BLOCK, PDL=pdl, num_warps=4, **launch,
    )  # fmt: skip
    final_kernel[(rows,)](
        value, index, lowest, highest, positions, counts, ids, chosen, blocks, vocabulary, ahead,
        BLOCKS=triton.next_power_of_2(blocks), PENALIZES=penalizes, PDL=pdl, num_warps=1, **launch,
    )  # fmt: skip
    return chosen


@choose_tokens.register_fake
def _(logits: Tensor, *others: object) -> Tensor:
    del others
    return logits.new_empty(logits.shape[0], dtype=torch.int64)
