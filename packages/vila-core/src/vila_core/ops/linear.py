"""Linears of one or a few tokens with 16-bit weights (reference: `reference.linear`), limited by reading the weights.

M tokens, N outputs, K inputs

    y = x Wᵀ + bias, for up to three weights side by side, or gelu of it;    or    y = silu(x W_0ᵀ) · (x W_1ᵀ)

**One token** (`vector_kernel`). A block takes `ROWS` whole rows of a weight. It loads their first `AHEAD` chunks of
`CHUNK` inputs before it waits for the kernel ahead, since weights are constants. Grid: (ΣN / ROWS,).

**2 to 8 tokens**: `few_tokens`.

**9 to 16 tokens** (`matrix_kernel`). Tensor cores; tokens are the 16-row operand, and rows past the last token
are not read. While a block waits for the kernel ahead, it prefetches its first weights into L2. Grid: (Σ ⌈N / ROWS⌉,).

**More**: cuBLAS.
"""

# Triton has no types: a kernel's arguments and its launch are not checked. Compile-time constants are in capitals.
# ruff: noqa: N803, RUF005
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportArgumentType=false, reportIndexIssue=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from vila_core.ops.few_tokens import few_tokens, fits_few_tokens
from vila_core.ops.prefetch import prefetch_into_l2
from vila_core.ops.prefill import silu_multiply
from vila_core.ops.rows import activated
from vila_core.ops.side_by_side import own_row, pick
from vila_core.ops.support import launches_early
from vila_core.ops.swiglu import swiglu

MAX_TOKENS = 16
MAX_WEIGHTS = 3
MATRIX_ROWS = 32
"""With more than a few tokens, each weight but the last of those side by side needs a multiple of this many outputs."""
MANY_OUTPUTS = 32 * 120
"""More outputs keep a large GPU's multiprocessors (132 on an H200) busy with blocks of 32."""
MAX_NARROW_TOKENS, MIN_NARROW_INPUTS = 176, 12_000
"""With at most this many tokens and at least this many inputs, a product is faster when given a bias (H100, H200)."""


@dataclass(frozen=True)
class VectorConfig:
    """Launch settings for one token: rows of a block, inputs of a chunk, chunks loaded at a time, warps."""

    rows: int = 2
    chunk: int = 512
    ahead: int = 8
    warps: int = 2


@triton.jit
def _load_chunks(
    first, second, start, inputs, ROWS: tl.constexpr, CHUNK: tl.constexpr, AHEAD: tl.constexpr, SWIGLU: tl.constexpr
):
    """Return `AHEAD` chunks of `ROWS` rows from chunk `start` on (of both weights); zeros past the last input."""
    weights = ()
    row = tl.arange(0, ROWS)[:, None].to(tl.int64) * inputs
    for chunk in tl.static_range(AHEAD):
        column = (start + chunk) * CHUNK + tl.arange(0, CHUNK)
        mask = tl.broadcast_to((column < inputs)[None, :], (ROWS, CHUNK))
        weights = weights + (tl.load(first + row + column[None, :], mask=mask, other=0.0),)
        if SWIGLU:
            weights = weights + (tl.load(second + row + column[None, :], mask=mask, other=0.0),)
    return weights


@triton.jit
def _add_chunks(
    weights, x_pointer, start, inputs, total, other, CHUNK: tl.constexpr, AHEAD: tl.constexpr, SWIGLU: tl.constexpr
):
    """Return `total` and `other` with the products of the chunks added."""
    for chunk in tl.static_range(AHEAD):
        column = (start + chunk) * CHUNK + tl.arange(0, CHUNK)
        x = tl.load(x_pointer + column, mask=column < inputs, other=0.0).to(tl.float32)[None, :]
        if SWIGLU:
            total += weights[2 * chunk].to(tl.float32) * x
            other += weights[2 * chunk + 1].to(tl.float32) * x
        else:
            total += weights[chunk].to(tl.float32) * x
    return total, other


@triton.jit
def vector_kernel(
    w0_pointer, w1_pointer, w2_pointer, b0_pointer, b1_pointer, b2_pointer, x_pointer, y_pointer,
    outputs_0, outputs_1, inputs,
    HAS_BIAS: tl.constexpr, SWIGLU: tl.constexpr, ACT: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
    AHEAD: tl.constexpr, ROUNDS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """See the module. All N are multiples of `ROWS`; `ROUNDS · AHEAD` chunks cover K."""
    row = tl.program_id(0) * ROWS
    own = row if SWIGLU else own_row(row, outputs_0, outputs_1)
    if SWIGLU:
        first, second = w0_pointer, w1_pointer
    else:
        first = pick(row, w0_pointer, w1_pointer, w2_pointer, outputs_0, outputs_1)
        second = first
    first += own.to(tl.int64) * inputs
    second += own.to(tl.int64) * inputs
    weights = _load_chunks(first, second, 0, inputs, ROWS, CHUNK, AHEAD, SWIGLU)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    total = tl.zeros([ROWS, CHUNK], tl.float32)
    other = tl.zeros([ROWS, CHUNK], tl.float32)
    start = 0
    for _ in range(ROUNDS - 1):
        total, other = _add_chunks(weights, x_pointer, start, inputs, total, other, CHUNK, AHEAD, SWIGLU)
        start += AHEAD
        weights = _load_chunks(first, second, start, inputs, ROWS, CHUNK, AHEAD, SWIGLU)
    total, other = _add_chunks(weights, x_pointer, start, inputs, total, other, CHUNK, AHEAD, SWIGLU)
    y = tl.sum(total, axis=1)
    if SWIGLU:
        y = y * tl.sigmoid(y) * tl.sum(other, axis=1)
    place = tl.arange(0, ROWS)
    if HAS_BIAS:
        bias = pick(row, b0_pointer, b1_pointer, b2_pointer, outputs_0, outputs_1) + own
        y += tl.load(bias + place).to(tl.float32)
    tl.store(y_pointer + row + place, activated(y, ACT).to(y_pointer.dtype.element_ty))


@triton.jit
def matrix_kernel(
    w0_pointer, w1_pointer, w2_pointer, b0_pointer, b1_pointer, b2_pointer, x_pointer, y_pointer,
    outputs_0, outputs_1, outputs, inputs, tokens, x_stride,
    HAS_BIAS: tl.constexpr, ACT: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, PREFETCH: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """See the module. The first two N are multiples of `ROWS`; `PREFETCH` parts of 128 inputs come into L2 first."""
    row = tl.program_id(0) * ROWS
    own = own_row(row, outputs_0, outputs_1)
    place = tl.arange(0, ROWS)
    inside = row + place < outputs
    column = tl.arange(0, CHUNK)
    token = tl.arange(0, 16)
    weight = pick(row, w0_pointer, w1_pointer, w2_pointer, outputs_0, outputs_1)
    if PREFETCH:
        part = tl.arange(0, PREFETCH) * 128
        ahead = weight + tl.where(inside, own + place, own).to(tl.int64)[:, None] * inputs + part[None, :]
        prefetch_into_l2(ahead, 256, inside[:, None] & (part + 128 <= inputs)[None, :], PDL)
    weight += tl.where(inside, own + place, own).to(tl.int64)[:, None] * inputs + column[None, :]
    x_pointers = x_pointer + token[:, None] * x_stride + column[None, :]
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    is_token = (token < tokens)[:, None]
    total = tl.zeros([16, ROWS], tl.float32)
    for start in range(0, inputs, CHUNK):
        mask = (start + column < inputs)[None, :]
        w = tl.load(weight + start, mask=mask, other=0.0)
        x = tl.load(x_pointers + start, mask=mask & is_token, other=0.0)
        total = tl.dot(x, tl.trans(w), total)
    if HAS_BIAS:
        bias = pick(row, b0_pointer, b1_pointer, b2_pointer, outputs_0, outputs_1) + own
        total += tl.load(bias + place, mask=inside, other=0.0).to(tl.float32)[None, :]
    pointers = y_pointer + token[:, None] * outputs + (row + place)[None, :]
    tl.store(pointers, activated(total, ACT).to(y_pointer.dtype.element_ty), mask=inside[None, :] & is_token)


@dataclass(frozen=True)
class MatrixConfig:
    """Launch settings for several tokens: rows of a block, inputs of a chunk, 128-input parts prefetched per row."""

    rows: int = MATRIX_ROWS
    chunk: int = 256
    prefetch: int = 4


def choose_matrix_config(outputs: int) -> MatrixConfig:
    """Return the settings for weights of `outputs` rows in all: few rows get smaller blocks, to occupy a large GPU."""
    return MatrixConfig() if outputs > MANY_OUTPUTS else MatrixConfig(rows=16, chunk=512, prefetch=8)


def choose_vector_config(inputs: int, outputs: int, *, both: bool) -> VectorConfig:
    """Return the settings for weights of `outputs` rows; `both`: a block reads rows of two weights, as SwiGLU does."""
    # Measured on an H200: the five best of nineteen for each shape of NVILA-8B and 3B are within 5 % of each other.
    if both:
        config = VectorConfig(2, 512, 4, 2)
    elif outputs >= 32_768:
        config = VectorConfig(4, 512, 2, 2)
    elif inputs > 12_000:
        config = VectorConfig(1, 2048, 5, 8)
    else:
        config = VectorConfig(2, 1024, 2, 4)
    return config if outputs % config.rows == 0 else replace(config, rows=1)


@torch.library.custom_op("vila::small_linear", mutates_args=())
def _small_linear(x: Tensor, weights: list[Tensor], biases: list[Tensor], swiglu: bool, act: str = "") -> Tensor:
    """See the module. `x [M, K]`, M at most `MAX_TOKENS` -> `[M, ΣN]`; `act` is "gelu" or "".

    With SwiGLU `[M, N]`, for one token or what `few_tokens` takes.
    """
    tokens, inputs = x.shape
    sizes = [weight.shape[0] for weight in weights]
    outputs = sizes[0] if swiglu else sum(sizes)
    y = x.new_empty(tokens, outputs)
    pdl = launches_early(x.device)
    launch = {"launch_pdl": True} if pdl else {}
    three = (*weights, weights[0], weights[0])[:MAX_WEIGHTS]
    biased = (*biases, weights[0], weights[0], weights[0])[:MAX_WEIGHTS]
    # A weight that does not exist starts after the last output.
    ends = (sizes[0], sizes[1] if len(sizes) > 1 else 0)
    if tokens == 1:
        config = choose_vector_config(inputs, math.gcd(*sizes), both=swiglu)
        vector_kernel[(outputs // config.rows,)](
            *three, *biased, x, y, *ends, inputs, HAS_BIAS=bool(biases), SWIGLU=swiglu, ACT=act,
            ROWS=config.rows, CHUNK=config.chunk, AHEAD=config.ahead,
            ROUNDS=triton.cdiv(inputs, config.chunk * config.ahead), PDL=pdl, num_warps=config.warps, **launch,
        )  # fmt: skip
    elif fits_few_tokens(x):
        few_tokens(x, weights, biases, y, swiglu=swiglu, act=act)
    elif tokens:
        assert not swiglu
        settings = choose_matrix_config(outputs)
        matrix_kernel[(triton.cdiv(outputs, settings.rows),)](
            *three, *biased, x, y, *ends, outputs, inputs, tokens, x.stride(0), HAS_BIAS=bool(biases), ACT=act,
            ROWS=settings.rows, CHUNK=settings.chunk, PREFETCH=settings.prefetch, PDL=pdl, num_warps=4, num_stages=4,
            **launch,
        )  # fmt: skip
    return y


@_small_linear.register_fake
def _(x: Tensor, weights: list[Tensor], biases: list[Tensor], swiglu: bool, act: str = "") -> Tensor:
    del biases, act
    return x.new_empty(x.shape[0], weights[0].shape[0] if swiglu else sum(weight.shape[0] for weight in weights))


def linear(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Tensor:
    """Return the products of `x` with all `weights`, side by side: `[M, ΣN]`.

    Args:
        x: `[M, K]` fp16 or bf16, rows contiguous.
        weights: one to three, `[N_i, K]` contiguous.
        biases: `[N_i]` or None, one for each weight.
    """
    rows = 1 if len(x) == 1 or fits_few_tokens(x) else MATRIX_ROWS
    fits = len(weights) <= MAX_WEIGHTS and all(weight.shape[0] % rows == 0 for weight in weights[:-1])
    if len(x) > MAX_TOKENS or not fits or x.shape[1] % 8 or x.stride(1) != 1:
        parts = [_product(x, weight, bias) for weight, bias in zip(weights, biases, strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
    given: list[Tensor] = []
    if any(bias is not None for bias in biases):
        given = [
            weight.new_zeros(weight.shape[0]) if bias is None else bias
            for weight, bias in zip(weights, biases, strict=True)
        ]
    return torch.ops.vila.small_linear(x, list(weights), given, False)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    tokens, inputs = x.shape
    # Given a bias, even of zeros, PyTorch takes cuBLASLt, which is faster for such shapes and slower for others.
    if bias is None and x.is_cuda and MAX_TOKENS < tokens <= MAX_NARROW_TOKENS and inputs >= MIN_NARROW_INPUTS:
        bias = _zeros(len(weight), x.device, x.dtype)
    return F.linear(x, weight, bias)


@cache
def _zeros(count: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        return torch.zeros(count, device=device, dtype=dtype)


def gelu_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`x [M, K]`, `weight [N, K]`, `bias [N]` -> `gelu(x weightᵀ + bias)`, `[M, N]`, the exact GELU."""
    if len(x) <= MAX_TOKENS and x.shape[1] % 8 == 0 and x.stride(1) == 1:
        return torch.ops.vila.small_linear(x, [weight], [bias], False, "gelu")
    return F.gelu(F.linear(x, weight, bias))


def swiglu_linear(x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    """`x [M, K]`, weights `[N, K]` -> `silu(x gateᵀ) · (x upᵀ)`, `[M, N]`."""
    if (len(x) == 1 and x.shape[1] % 8 == 0) or fits_few_tokens(x):
        return torch.ops.vila.small_linear(x, [gate, up], [], True)
    if len(x) > MAX_TOKENS:
        return silu_multiply(F.linear(x, gate), F.linear(x, up))
    return swiglu(linear(x, (gate, up), (None, None)))
