"""W4A16 for hundreds to thousands of tokens on Hopper: codes become numbers while the tensor cores multiply.

M tokens, N outputs, K inputs, g group size

    y[m, n] = sum_k x[m, k] · w[n, k] + bias[n],    w = (q - zero) · scale, rounded to the dtype of x

**Grid.** One block per multiprocessor. Each takes one item after the other; an item is a tile of `BLOCK_N` outputs ×
`BLOCK_M` tokens or, of the tiles left over after whole waves, a part of one along K. Parts are added as in `tiles`.

How a block works: `warpgroup_kernel`.
"""

# A kernel's launch takes options that its signature does not have; Gluon's layouts have no types.
# pyright: reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton
from torch import Tensor

from vila_quant.kernels.cuda.w4a16.layout import UNIT_INPUTS, UNIT_OUTPUTS
from vila_quant.kernels.cuda.w4a16.tiles import add_parts, leftover, sizes

BLOCK_N = 128
"""Outputs of a tile."""

STEP = 64
"""Inputs per step."""

TESTED_TRITON = (["3", "6"], ["3", "7"])

ROW_ELEMENTS = 8
"""TMA writes rows that start at multiples of 16 bytes."""


@dataclass(frozen=True)
class WarpgroupConfig:
    """Tokens of a tile, stages of activations (an odd number), how many blocks at most share a tile that is left over,
    and over how many waves its parts may spread."""

    block_m: int = 256
    stages: int = 5
    splits: int = 8
    waves: int = 1


@cache
def is_supported(capability: tuple[int, int]) -> bool:
    """Return whether the kernel runs on a GPU of this compute capability, with the Triton that is installed.

    Gluon, its language, is experimental: a release may change it.
    """
    return capability == (9, 0) and triton.__version__.split(".")[:2] in TESTED_TRITON


def multiply_warpgroups(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    y: Tensor,
    group_size: int,
    config: WarpgroupConfig,
    *,
    multiprocessors: int,
    pdl: bool = False,
) -> None:
    """Write `x Wᵀ + bias` to `y`.

    Args:
        x: `[M, units · 128]` fp16 or bf16; rows aligned to 16 bytes.
        packed: the packed weight.
        bias: `[N]` in the dtype of `x`, or None.
        y: `[M, N]`, rows contiguous.
        group_size: of the weight.
        config: how to split the work.
        multiprocessors: of the GPU.
        pdl: whether a kernel may start before the one ahead of it ends (programmatic dependent launch).
    """
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    from vila_quant.kernels.cuda.w4a16.warpgroup_kernel import warpgroup_kernel

    tokens, outputs, blocks, units = sizes(x, packed, y)
    if y.stride(0) % ROW_ELEMENTS:
        aligned = y.new_empty(tokens, -(-outputs // ROW_ELEMENTS) * ROW_ELEMENTS)[:, :outputs]
        multiply_warpgroups(x, packed, bias, aligned, group_size, config, multiprocessors=multiprocessors, pdl=pdl)
        y.copy_(aligned)
        return
    tiles = triton.cdiv(blocks * UNIT_OUTPUTS, BLOCK_N) * triton.cdiv(tokens, config.block_m)
    split_tiles, splits = leftover(tiles, units, config.splits, multiprocessors, config.waves)
    whole_tiles = tiles - split_tiles
    items = whole_tiles + split_tiles * splits
    parts = x.new_empty(max(1, splits * split_tiles * config.block_m * BLOCK_N), dtype=torch.float32)
    kind = gl.float16 if x.dtype == torch.float16 else gl.bfloat16
    x_block, y_block = [config.block_m, STEP], [config.block_m, BLOCK_N]
    warpgroup_kernel[(min(items, multiprocessors),)](
        packed, TensorDescriptor.from_tensor(x, x_block, gl.NVMMASharedLayout.get_default_for(x_block, kind)),
        y if bias is None else bias,
        TensorDescriptor.from_tensor(y, y_block, gl.NVMMASharedLayout.get_default_for(y_block, kind)), parts,
        tokens, outputs, blocks, units, items, whole_tiles, split_tiles,
        triton.cdiv(units, splits), HAS_BIAS=bias is not None, GROUPS=UNIT_INPUTS // group_size, BLOCK_M=config.block_m,
        STAGES=config.stages, SPLIT=split_tiles > 0, PDL=pdl, num_warps=8, **({"launch_pdl": True} if pdl else {}),
    )  # fmt: skip
    if split_tiles:
        add_parts(parts, bias, y, whole_tiles, split_tiles, splits, BLOCK_N, config.block_m, pdl=pdl)
