"""W4A16 for 1 to 16 tokens: reading the weight is nearly all of the work.

M tokens, N outputs, K inputs, g group size

    y[m, n] = sum_k x[m, k] · (q[n, k] - zero[n, k // g]) · scale[n, k // g] + bias[n]

How it works: `decode_kernel` and `unit`.
"""

# A kernel's launch takes options that its signature does not have.
# pyright: reportCallIssue=false

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from vila_core.ops.attention import BLOCK, SplitHeads
from vila_quant.kernels.cuda.w4a16.decode_kernel import decode_kernel
from vila_quant.kernels.cuda.w4a16.layout import UNIT_INPUTS, UNIT_OUTPUTS

MAX_TOKENS = 16
PREFETCHING_BLOCKS = 264


@dataclass(frozen=True)
class DecodeConfig:
    """Configuration of a block of the kernel.

    `tiles` of 16 outputs (1 or 2), `warps` that split K, units in flight per warp (`slots`), units of activations
    loaded ahead, a cap on registers (0: none), how many MMAs of a group are independent, and bytes of the next weight
    to prefetch."""

    tiles: int = 1
    warps: int = 8
    slots: int = 2
    ahead: int = 2
    registers: int = 0
    chains: int = 2
    prefetch: int = 3 << 20


@dataclass(frozen=True)
class Normed:
    """The input of a linear is `h · weight`, and is still to be multiplied by `scale / sqrt(mean(h²) + eps)`.

    `squares` are parts of the sum of h², one for each 16 elements. Since the linear is linear,
    the factor is applied to its result, and the norm takes no kernel of its own.
    """

    squares: Tensor
    scale: float
    eps: float


@dataclass(frozen=True)
class Adding:
    """The result is added to a residual: `h = residual + x Wᵀ`. One token.

    Also written, for `Normed`: `scaled = h · weight`, `[1, N]`, and parts of the sum of h², `squares`.
    """

    residual: Tensor
    weight: Tensor
    scaled: Tensor
    squares: Tensor


def num_parts(packed: Tensor) -> int:
    """Return how many parts `Adding.squares` has."""
    return packed.shape[0] * 2


def merges_heads(head_dim: int, group_size: int) -> bool:
    """Return whether heads are a whole number of groups, and units a whole number of heads."""
    return head_dim % group_size == 0 and UNIT_INPUTS % head_dim == 0


def decode(
    x: Tensor | SplitHeads,
    packed: Tensor,
    bias: Tensor | None,
    y: Tensor,
    group_size: int,
    config: DecodeConfig,
    *,
    next_packed: Tensor | None = None,
    swiglu: bool = False,
    normed: Normed | None = None,
    adding: Adding | None = None,
    pdl: bool = False,
    inline: bool = True,
) -> None:
    """Write `x Wᵀ + bias` to `y`, or with `swiglu` `silu(x W_gateᵀ) · (x W_upᵀ)`.

    Args:
        x: `[M, units · 128]` fp16 or bf16, M from 1 to 16; rows aligned to 16 bytes. Or one token's attention in parts,
            whose heads are a whole number of groups.
        packed: the packed weight; for `swiglu` those of gate and up, one after the other.
        bias: `[N]` in the dtype of `x`, or None.
        y: `[M, N]`, rows contiguous.
        group_size: of the weight.
        config: how to split the work; `swiglu` takes 2 tiles.
        next_packed: the weight that the next kernel reads, of which `config.prefetch` bytes are prefetched into L2.
        normed: what is left to do of the norm of `x`; one token, and K is not padded.
        adding: what the result is added to; `y` becomes h.
        swiglu: whether `packed` holds two weights, the gate first, each a whole number of units.
        pdl: whether a kernel may start before the one ahead of it ends (programmatic dependent launch, from sm90).
        inline: whether to use PTX instructions; False is for the interpreter.
    """
    tokens, outputs = y.shape
    blocks, units, _ = packed.shape
    heads = x if isinstance(x, SplitHeads) else None
    if heads is not None:
        assert merges_heads(heads.head_dim, group_size)
        assert tokens == 1
        x = heads.parts
        assert heads.logs.shape == (x.shape[1] // heads.head_dim, len(x))
    if swiglu:
        assert config.tiles == 2
        assert bias is None
        assert blocks * UNIT_OUTPUTS == 2 * outputs
    assert isinstance(x, Tensor)
    assert x.shape == (tokens if heads is None else len(x), units * UNIT_INPUTS)
    assert 1 <= tokens <= MAX_TOKENS
    assert x.stride(1) == 1
    assert x.stride(0) % 8 == 0
    assert y.stride(1) == 1
    assert y.dtype == x.dtype
    assert tokens == 1 or (normed is None and adding is None)
    grid = blocks * 2 // config.tiles
    if adding is not None:
        assert len(adding.squares) == num_parts(packed)
        assert adding.residual.is_contiguous()
        assert not swiglu
    squares = y if adding is None else adding.squares
    squares = squares if normed is None else normed.squares
    prefetching = min(grid, PREFETCHING_BLOCKS) if next_packed is not None and config.prefetch and pdl else 0
    following = packed if next_packed is None else next_packed
    next_bytes = min(config.prefetch, following.nbytes) // prefetching // 16 * 16 if prefetching else 0
    options = {"maxnreg": config.registers} if config.registers else {}
    if pdl:
        options["launch_pdl"] = True
    logs, position = (squares, squares) if heads is None else (heads.logs, heads.position)
    decode_kernel[(grid,)](
        packed, x.view(torch.int32), y if bias is None else bias, y, following.view(torch.uint8),
        *((y, y, y) if adding is None else (adding.residual, adding.weight, adding.scaled)), squares,
        logs, position, tokens, outputs, units, x.stride(0) // 2, y.stride(0), next_bytes, packed.numel() // 2,
        *((0, 1.0, 0.0) if normed is None else (len(normed.squares), normed.scale, normed.eps)),
        0 if heads is None else heads.window,
        HAS_BIAS=bias is not None, GROUPS=UNIT_INPUTS // group_size, ONE_TOKEN=tokens == 1,
        COLUMNS=1 if tokens <= 8 else 2,
        TILES=config.tiles, WARPS=config.warps, SLOTS=config.slots, AHEAD=min(config.ahead, config.slots),
        CHAINS=config.chains, ROUNDS=triton.cdiv(units, config.slots * config.warps), SWIGLU=swiglu,
        ADDS=adding is not None, PARTIALS=0 if normed is None else triton.cdiv(len(normed.squares), 32),
        HEAD_PARTS=0 if heads is None else len(x), HEAD_WIDTH=128 if heads is None else heads.head_dim,
        HEAD_BLOCK=BLOCK, PDL=pdl,
        PREFETCH=prefetching, INLINE=inline,
        num_warps=config.warps, num_stages=1, **options,
    )  # fmt: skip
