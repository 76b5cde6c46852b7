"""Sampling on the device: greedy, temperature, top-k and top-p, each row with settings and a seed of its own.

B rows, V vocabulary

    token = argmax_v(logit_v / temperature + noise_v) over the tokens that top-k and top-p keep

With noise = -log(-log(u)), u uniform, this samples from the softmax (Gumbel-max). The noise depends on the row's seed,
on how many tokens it has generated and on v, so that a row's answer does not depend on the batch. Which tokens are
kept: `reference.kept_tokens`.

**Kernels.** `threshold_kernel` (one block per row, only if some row needs it) finds the smallest kept logit by a search
over the 32 bits of ordered floats, four bits at a time. `argmax_kernel` (V / BLOCK blocks per row) and `final_kernel`
choose the token.
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

BLOCK = 4096
LOWEST = -(2**31)


@triton.jit
def _ordered(value):
    """Return an integer for each fp32 number, in the same order."""
    bits = value.to(tl.int32, bitcast=True)
    return tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)


@triton.jit
def _scaled(pointer, row, column, vocabulary, temperature):
    """Return logits divided by the temperature; -inf past the end and for NaN."""
    x = tl.load(pointer + row * vocabulary + column, mask=column < vocabulary, other=float("-inf")).to(tl.float32)
    return tl.where(x == x, x, float("-inf")) / tl.where(temperature > 0, temperature, 1.0)


@triton.jit
def _mass_from(
    pointer, row, vocabulary, temperature, largest, floor, low, step, COUNT: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Return, for 16 thresholds `low + i · step`, the number (or probability) of logits from each threshold on."""
    threshold = low + tl.arange(0, 16).to(tl.int64) * step
    mass = tl.zeros([16, BLOCK], tl.float32)
    for start in tl.range(0, vocabulary, BLOCK, num_stages=4):
        column = start + tl.arange(0, BLOCK)
        x = _scaled(pointer, row, column, vocabulary, temperature)
        key = _ordered(x).to(tl.int64)
        counted = (column < vocabulary) & (key >= floor)
        weight = tl.where(counted, 1.0, 0.0) if COUNT else tl.where(counted, tl.exp(x - largest), 0.0)
        mass += tl.where(key[None, :] >= threshold[:, None], weight[None, :], 0.0)
    return tl.sum(mass, axis=1)


@triton.jit
def _search(
    pointer, row, vocabulary, temperature, largest, floor, wanted, COUNT: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Return the largest key such that logits from it on number (or weigh) at least `wanted`."""
    low = tl.full([], -(2**31), tl.int64)
    step = tl.full([], 1 << 28, tl.int64)
    for _ in range(8):
        mass = _mass_from(pointer, row, vocabulary, temperature, largest, floor, low, step, COUNT, BLOCK)
        enough = tl.sum((mass >= wanted).to(tl.int64), axis=0)  # masses fall with the threshold
        low += (tl.maximum(enough, 1) - 1) * step
        step = step >> 4
    return low


@triton.jit
def threshold_kernel(
    logits_pointer, temperature_pointer, top_k_pointer, top_p_pointer, threshold_pointer, vocabulary,
    BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Write the key of the smallest kept logit of each row."""
    row = tl.program_id(0).to(tl.int64)
    temperature = tl.load(temperature_pointer + row)
    top_k = tl.load(top_k_pointer + row)
    top_p = tl.load(top_p_pointer + row)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    floor = tl.full([], -(2**31), tl.int64)
    if temperature > 0:
        if (top_k > 0) & (top_k < vocabulary):
            floor = _search(logits_pointer, row, vocabulary, temperature, 0.0, floor, top_k.to(tl.float32), True, BLOCK)
        if top_p < 1.0:
            largest = tl.full([BLOCK], float("-inf"), tl.float32)
            for start in tl.range(0, vocabulary, BLOCK, num_stages=4):
                x = _scaled(logits_pointer, row, start + tl.arange(0, BLOCK), vocabulary, temperature)
                largest = tl.maximum(largest, x)
            most = tl.max(largest, axis=0)
            total = tl.zeros([BLOCK], tl.float32)
            for start in tl.range(0, vocabulary, BLOCK, num_stages=4):
                x = _scaled(logits_pointer, row, start + tl.arange(0, BLOCK), vocabulary, temperature)
                total += tl.where(_ordered(x).to(tl.int64) >= floor, tl.exp(x - most), 0.0)
            wanted = tl.sum(total, axis=0) * top_p
            nucleus = _search(logits_pointer, row, vocabulary, temperature, most, floor, wanted, False, BLOCK)
            floor = tl.maximum(floor, nucleus)
    tl.store(threshold_pointer + row, floor.to(tl.int32))


@triton.jit
def argmax_kernel(
    logits_pointer, temperature_pointer, seed_pointer, step_pointer, threshold_pointer, value_pointer, index_pointer,
    vocabulary, FILTER: tl.constexpr, NOISE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Write the best token of each block of the vocabulary. NOISE: some row has a temperature above 0."""
    row = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    temperature = 0.0
    if NOISE:
        temperature = tl.load(temperature_pointer + row)
        seed, step = tl.load(seed_pointer + row), tl.load(step_pointer + row).to(tl.int32)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    x = _scaled(logits_pointer, row, column, vocabulary, temperature)
    if NOISE:
        if FILTER:
            x = tl.where(_ordered(x) >= tl.load(threshold_pointer + row), x, float("-inf"))
        zero = column * 0
        bits, _, _, _ = tl.philox(seed, column, zero + step, zero, zero)
        uniform = tl.maximum(tl.uint_to_uniform_float(bits), 1e-10)
        noise = -tl.log(-tl.log(uniform))
        x = tl.where(temperature > 0, x + noise, x)
    place = row * tl.num_programs(0) + tl.program_id(0)
    best = tl.max(x, axis=0)
    tl.store(value_pointer + place, best)
    index = tl.min(tl.where((x == best) & (column < vocabulary), column, 2147483647), axis=0)
    tl.store(index_pointer + place, index)


@triton.jit
def final_kernel(value_pointer, index_pointer, ids_pointer, blocks, BLOCKS: tl.constexpr, PDL: tl.constexpr):
    """Write the best of the blocks' tokens; of equal ones the first."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, BLOCKS)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    value = tl.load(value_pointer + row * blocks + block, mask=block < blocks, other=float("-inf"))
    index = tl.load(index_pointer + row * blocks + block, mask=block < blocks, other=2147483647)
    best = tl.min(tl.where(value == tl.max(value, axis=0), index, 2147483647), axis=0)
    tl.store(ids_pointer + row, best.to(tl.int64))


@torch.library.custom_op("vila::sample", mutates_args=())
def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    seeds: Tensor,
    steps: Tensor,
    is_greedy: bool = False,
    keeps_all: bool = False,
) -> Tensor:
    """Return a token for each row, int64 `[B]`.

    Args:
        logits: `[B, V]` contiguous, any floating dtype. NaN counts as -inf.
        temperature: float32 `[B]`; 0 is greedy.
        top_k: int32 `[B]`; 0 keeps all tokens.
        top_p: float32 `[B]`; 1 keeps all tokens.
        seeds: int64 `[B]`.
        steps: int64 `[B]`: how many tokens the row has generated.
        is_greedy: promises that every temperature is 0.
        keeps_all: promises that no row uses top-k or top-p.
    """
    rows, vocabulary = logits.shape
    assert logits.is_contiguous()
    blocks = triton.cdiv(vocabulary, BLOCK)
    threshold = logits.new_empty(rows, dtype=torch.int32)
    value = logits.new_empty(rows, blocks, dtype=torch.float32)
    index = logits.new_empty(rows, blocks, dtype=torch.int32)
    ids = logits.new_empty(rows, dtype=torch.int64)
    pdl = launches_early(logits.device)
    launch = {"launch_pdl": True} if pdl else {}
    if not rows:
        return ids
    filters = not is_greedy and not keeps_all
    if filters:
        threshold_kernel[(rows,)](
            logits, temperature, top_k, top_p, threshold, vocabulary, BLOCK=1024, PDL=pdl, num_warps=16, **launch
        )
    argmax_kernel[(blocks, rows)](
        logits, temperature, seeds, steps, threshold, value, index, vocabulary, FILTER=filters, NOISE=not is_greedy,
        BLOCK=BLOCK, PDL=pdl, num_warps=8, **launch,
    )  # fmt: skip
    final_kernel[(rows,)](
        value, index, ids, blocks, BLOCKS=triton.next_power_of_2(blocks), PDL=pdl, num_warps=1, **launch
    )
    return ids


@sample.register_fake
def _(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    seeds: Tensor,
    steps: Tensor,
    is_greedy: bool = False,
    keeps_all: bool = False,
) -> Tensor:
    del temperature, top_k, top_p, seeds, steps, is_greedy, keeps_all
    return logits.new_empty(logits.shape[0], dtype=torch.int64)
