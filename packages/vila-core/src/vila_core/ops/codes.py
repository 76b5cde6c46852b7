"""Choosing a picture's code from the logits of two rows, in one kernel (reference: `reference.choose_codes`).

R rows, K codebook size

    x = u + guidance · (c - u),    code = argmax(x + temperature · noise) over the codes that top-k and top-p keep

c are the logits of the row that leads a picture, u those of its companion. Both rows get the same code, and each
computes it. The noise is that of `sampling`, and so is the order of top-k and top-p (see `filters`).

**Kernel.** A block holds the logits of a row in registers, and finds the smallest kept one by bisection over the
sortable keys of `filters`: at most 32 sums over the block. Grid: (R,).
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

from vila_core.ops.filters import is_needed, ordered
from vila_core.ops.reference import MAX_CODES
from vila_core.ops.sampling import NO_TOKEN
from vila_core.ops.support import launches_early


@triton.jit
def _bisect(key, weight, low, high, wanted):
    """Return the largest threshold, `low` to `high` (int64), from which on weights add up to `wanted`; else `low`."""
    while low < high:
        middle = (low + high + 1) >> 1
        found = tl.sum(tl.where(key >= middle.to(tl.int32), weight, 0.0), axis=0)
        low = tl.where(found >= wanted, middle, low)
        high = tl.where(found >= wanted, high, middle - 1)
    return low


@triton.jit
def choose_codes_kernel(
    logits_pointer, companions_pointer, leaders_pointer, guidance_pointer, temperature_pointer, top_k_pointer,
    top_p_pointer, seed_pointer, positions_pointer, ids_pointer, chosen_pointer, vocabulary, ahead,
    DRAWS: tl.constexpr, TOP_K: tl.constexpr, TOP_P: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """See the module."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < vocabulary
    leader = tl.load(leaders_pointer + row)
    companion = tl.load(companions_pointer + leader)
    guidance = tl.load(guidance_pointer + leader)
    temperature = tl.load(temperature_pointer + leader)
    seed = tl.load(seed_pointer + leader)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    position = tl.load(positions_pointer + leader)
    conditional = tl.load(logits_pointer + leader * vocabulary + column, mask=inside, other=0.0).to(tl.float32)
    unconditional = tl.load(logits_pointer + companion * vocabulary + column, mask=inside, other=0.0).to(tl.float32)
    x = unconditional + guidance * (conditional - unconditional)
    is_finite = tl.abs(x) < float("inf")  # false for NaN
    highest = tl.max(tl.where(inside, tl.where(is_finite, x, float("inf")), float("-inf")), axis=0)
    lowest = tl.min(tl.where(inside & is_finite, x, float("inf")), axis=0)
    is_usable = (highest < float("inf")) & ((lowest < highest) | (vocabulary == 1)) & (position >= 0)
    x = tl.where(inside & is_finite, x, float("-inf"))
    if DRAWS:
        if TOP_K or TOP_P:
            key = ordered(x)
            low, high = ordered(lowest).to(tl.int64), ordered(tl.max(x, axis=0)).to(tl.int64)
            if TOP_K:
                count = tl.load(top_k_pointer + leader)
                needed = is_usable & is_needed(temperature, count, vocabulary, True)
                low = _bisect(key, tl.where(inside, 1.0, 0.0), low, tl.where(needed, high, low), count.to(tl.float32))
            if TOP_P:
                share = tl.load(top_p_pointer + leader)
                needed = is_usable & is_needed(temperature, share, vocabulary, False)
                weight = tl.where((key >= low.to(tl.int32)) & inside, tl.exp((x - highest) / temperature), 0.0)
                wanted = share * tl.sum(weight, axis=0)
                low = _bisect(key, weight, low, tl.where(needed, high, low), wanted)
            logit = tl.where(key >= 0, key, key ^ 0x7FFFFFFF).to(tl.float32, bitcast=True)  # from its key: x is free
            x = tl.where((key >= low.to(tl.int32)) & inside, logit, float("-inf"))
        zero = column * 0
        bits, _, _, _ = tl.philox(seed, column, zero + (position.to(tl.int32) + ahead), zero, zero)
        uniform = tl.maximum(tl.uint_to_uniform_float(bits), 1e-10)
        x = tl.where(temperature > 0, x + temperature * -tl.log(-tl.log(uniform)), x)
    best = tl.min(tl.where((x == tl.max(x, axis=0)) & inside, column, 2147483647), axis=0)
    best = tl.where(best < vocabulary, best, 0).to(tl.int64)
    tl.store(ids_pointer + row, best)
    tl.store(chosen_pointer + row, tl.where(is_usable & (leader == row), best, NO_TOKEN))


@torch.library.custom_op("vila::choose_codes", mutates_args=())
def choose_codes(
    logits: Tensor,
    companions: Tensor,
    leaders: Tensor,
    guidance: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
    ahead: int,
    draws: bool,
    uses_top_k: bool,
    uses_top_p: bool,
) -> tuple[Tensor, Tensor]:
    """Choose a code for each row; arguments and results as in `reference.choose_codes`. K is at most `MAX_CODES`."""
    rows, vocabulary = logits.shape
    codes, chosen = (logits.new_empty(rows, dtype=torch.int64) for _ in range(2))
    assert logits.is_contiguous()
    assert 0 < vocabulary <= MAX_CODES
    pdl = launches_early(logits.device)
    block = triton.next_power_of_2(vocabulary)
    if rows:
        choose_codes_kernel[(rows,)](
            logits, companions, leaders, guidance, temperature, top_k, top_p, seeds, positions, codes, chosen,
            vocabulary, ahead, DRAWS=draws, TOP_K=uses_top_k, TOP_P=uses_top_p, BLOCK=block, PDL=pdl,
            num_warps=warps_for(block), **({"launch_pdl": True} if pdl else {}),
        )  # fmt: skip
    return codes, chosen


def warps_for(block: int) -> int:
    """Return the number of warps of a block that holds `block` logits."""
    return min(16, max(4, block // 1024))


@choose_codes.register_fake
def _(logits: Tensor, *others: object) -> tuple[Tensor, Tensor]:
    del others
    rows = logits.shape[0]
    return logits.new_empty(rows, dtype=torch.int64), logits.new_empty(rows, dtype=torch.int64)
