"""Linears of 2 to 8 tokens with 16-bit weights (reference: `reference.linear`): reading the weights is all of the work.

M tokens, N outputs, K inputs

    y = x Wᵀ + bias, for up to three weights side by side, or gelu of it;    or    y = silu(x W_0ᵀ) · (x W_1ᵀ)

**Grid** (⌈ΣN / 16⌉,). A block takes 16 outputs, or with SWIGLU the same 8 of both weights. Its warps take turns along
K, 32 inputs each, and add up at the end, so the order of a sum is fixed and does not depend on the other tokens.

**Product.** Weights are the 16-row operand of `mma.m16n8k16`, tokens its 8 columns. Inputs may come in any order, as
long as it is the same for both: thread 4r + q of a warp reads 8 consecutive weights of rows r and r + 8, and 8
activations of token r, at input 8q of the 32. Words 0 and 1 of the four are its share of one mma, 2 and 3 that of
another, so operands come from memory as they are and nothing passes through shared memory.

**Order.** A block loads its first `SLOTS` parts of the weights, which are constants, before it waits for the kernel
ahead of it (programmatic dependent launch). While that one ends, the next weights are on their way.
"""

# Triton has no types: a kernel's arguments and its launch are not checked.
# Compile-time constants are in capitals, tuples grow by `+`.
# ruff: noqa: N803, N806, RUF005
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportArgumentType=false, reportIndexIssue=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
# pyright: reportAssignmentType=false

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from vila_core.ops.fragments import load_words_if, mma, stream_words, sum_over_warps
from vila_core.ops.rows import activated
from vila_core.ops.side_by_side import own_row, pick
from vila_core.ops.support import launches_early

MAX_FEW_TOKENS = 8
WARPS = 8
SLOTS = 8
"""Parts of 32 inputs that a warp has in flight: 8 KiB of weights. Two blocks fit a multiprocessor's registers."""
MAX_REGISTERS = 128


@triton.jit
def _load_weights(low, high, valid, INLINE: tl.constexpr):
    """Return four words of each of the thread's rows."""
    return stream_words(low, valid, INLINE) + stream_words(high, valid, INLINE)


@triton.jit
def _multiply(weights, x, sums, WARPS: tl.constexpr, dtype: tl.constexpr, INLINE: tl.constexpr):
    """Return `sums` with the products of 32 inputs added. Two independent sums keep the tensor cores busy."""
    added = ()
    for part in tl.static_range(2):
        a = (weights[2 * part], weights[4 + 2 * part], weights[2 * part + 1], weights[5 + 2 * part])
        added = added + (mma(sums[part], a, x[2 * part], x[2 * part + 1], WARPS, dtype, INLINE),)
    return added


@triton.jit
def few_tokens_kernel(
    w0_pointer, w1_pointer, w2_pointer, b0_pointer, b1_pointer, b2_pointer, x_pointer, y_pointer,
    outputs_0, outputs_1, outputs, octets, tokens, x_stride,
    HAS_BIAS: tl.constexpr, SWIGLU: tl.constexpr, ACT: tl.constexpr, WARPS: tl.constexpr, SLOTS: tl.constexpr,
    ROUNDS: tl.constexpr, PDL: tl.constexpr, INLINE: tl.constexpr,
):  # fmt: skip
    """See the module. Weights, `x` and `x_stride` count words of two numbers, `octets` are K / 8.

    `ROUNDS · SLOTS · WARPS` parts of 32 inputs cover K.
    """
    dtype: tl.constexpr = y_pointer.dtype.element_ty
    OUTPUTS: tl.constexpr = 8 if SWIGLU else 16
    STEP: tl.constexpr = 4 * WARPS  # octets that the block takes at a time
    WORDS: tl.constexpr = 4 * STEP
    thread = tl.arange(0, 32 * WARPS)
    lane = thread & 31
    octet = (thread >> 5) * 4 + (lane & 3)
    first = tl.program_id(0) * OUTPUTS + (lane >> 2)
    lower = tl.minimum(first, outputs - 1)
    upper = lower if SWIGLU else tl.minimum(first + 8, outputs - 1)
    if SWIGLU:
        low, high = w0_pointer, w1_pointer
    else:
        low = pick(lower, w0_pointer, w1_pointer, w2_pointer, outputs_0, outputs_1)
        high = pick(upper, w0_pointer, w1_pointer, w2_pointer, outputs_0, outputs_1)
        lower = own_row(lower, outputs_0, outputs_1)
        upper = own_row(upper, outputs_0, outputs_1)
    low += lower.to(tl.int64) * (octets * 4) + octet * 4
    high += upper.to(tl.int64) * (octets * 4) + octet * 4
    own_x = x_pointer + tl.minimum(lane >> 2, tokens - 1).to(tl.int64) * x_stride + octet * 4

    weights = ()
    for slot in tl.static_range(SLOTS):
        place = slot * WORDS
        weights = weights + (_load_weights(low + place, high + place, octet + slot * STEP < octets, INLINE),)
    if PDL:
        gdc_wait()
    x = ()
    for slot in tl.static_range(SLOTS):
        x = x + (load_words_if(own_x + slot * WORDS, octet + slot * STEP < octets, INLINE),)
    if PDL:
        gdc_launch_dependents()
    zero = tl.zeros([32 * WARPS], tl.float32)
    sums = ((zero, zero, zero, zero), (zero, zero, zero, zero))
    for _ in range(ROUNDS - 1):
        octet += SLOTS * STEP
        low += SLOTS * WORDS
        high += SLOTS * WORDS
        own_x += SLOTS * WORDS
        for slot in tl.static_range(SLOTS):
            sums = _multiply(weights[0], x[0], sums, WARPS, dtype, INLINE)
            place, valid = slot * WORDS, octet + slot * STEP < octets
            x = x[1:] + (load_words_if(own_x + place, valid, INLINE),)
            weights = weights[1:] + (_load_weights(low + place, high + place, valid, INLINE),)
    for slot in tl.static_range(SLOTS):
        sums = _multiply(weights[slot], x[slot], sums, WARPS, dtype, INLINE)

    values = ()
    for kept in tl.static_range(4):
        values = values + (sums[0][kept] + sums[1][kept],)
    results = sum_over_warps(values, 4, WARPS, 2 if SWIGLU else 1, INLINE)
    value = thread >> 5  # see `mma` for what a thread has of a sum; the first warps store one value each
    token = 2 * (lane & 3) + value % 2
    output = first + 8 * (value // 2)
    mask = (value < OUTPUTS // 4) & (token < tokens) & (output < outputs)
    y = results[0]
    if HAS_BIAS:
        bias = pick(output, b0_pointer, b1_pointer, b2_pointer, outputs_0, outputs_1)
        y += tl.load(bias + own_row(output, outputs_0, outputs_1), mask=mask, other=0.0).to(tl.float32)
    if SWIGLU:
        y = y * tl.sigmoid(y) * results[1]
    tl.store(y_pointer + token.to(tl.int64) * outputs + output, activated(y, ACT).to(dtype), mask=mask)


def fits_few_tokens(x: Tensor) -> bool:
    """Return whether `few_tokens` takes `x [M, K]`: M from 2 to 8, K and the distance of rows multiples of 8."""
    return 1 < len(x) <= MAX_FEW_TOKENS and x.shape[1] % 8 == x.stride(0) % 8 == 0


def few_tokens(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], y: Tensor, *, swiglu: bool, act: str
) -> None:
    """Write the product to `y [M, N]`, contiguous. `fits_few_tokens` says whether `x` fits; see `linear`."""
    tokens, outputs = y.shape
    inputs = x.shape[1]
    sizes = [len(weight) for weight in weights]
    x, *weights = (_aligned(tensor).view(torch.int32) for tensor in (x, *weights))
    three = (*weights, weights[0], weights[0])[:3]
    biased = (*biases, y, y, y)[:3]
    # A weight that does not exist starts after the last output.
    ends = (sizes[0], sizes[1] if len(sizes) > 1 else 0)
    pdl = launches_early(x.device)
    few_tokens_kernel[(triton.cdiv(outputs, 8 if swiglu else 16),)](
        *three, *biased, x, y, *ends, outputs, inputs // 8, tokens, x.stride(0),
        HAS_BIAS=bool(biases), SWIGLU=swiglu, ACT=act, WARPS=WARPS, SLOTS=SLOTS,
        ROUNDS=triton.cdiv(inputs, 32 * WARPS * SLOTS), PDL=pdl, INLINE=x.is_cuda, num_warps=WARPS, num_stages=1,
        maxnreg=MAX_REGISTERS, **({"launch_pdl": True} if pdl else {}),
    )  # fmt: skip


def _aligned(tensor: Tensor) -> Tensor:
    """Return `tensor`, copied if it does not start at a multiple of 16 bytes."""
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()
