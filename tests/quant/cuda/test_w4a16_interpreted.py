"""The W4A16 kernels in plain Triton on the CPU interpreter, against the oracle.

The interpreter's matrix product takes no bf16 and its conversions to bf16 truncate: bf16 is tested where that does
not matter much.
"""

import pytest
from tests.interpreted_kernels import run_interpreted

CHECK = """
import sys
import torch
from torch.nn import functional as F
from vila_quant.kernels.cuda.w4a16 import W4Weight, reference
from vila_quant.kernels.cuda.w4a16.decode import DecodeConfig, decode
from vila_quant.kernels.cuda.w4a16.panels import dequantize
from vila_quant.kernels.cuda.w4a16.tiles import TileConfig, multiply_tiles

generator = torch.Generator().manual_seed(0)

def inputs(tokens, outputs, inputs, group_size, dtype):
    groups = inputs // group_size
    codes = torch.randint(16, (outputs, inputs), dtype=torch.uint8, generator=generator)
    scales = (0.5 + torch.rand(outputs, groups, generator=generator)) / 100
    zeros = torch.randint(16, (outputs, groups), generator=generator)
    x = torch.randn(tokens, inputs, generator=generator).to(dtype)
    bias = torch.randn(outputs, generator=generator).to(dtype)
    y = torch.full((tokens, outputs), torch.nan, dtype=dtype)
    return W4Weight.pack(codes, scales, zeros), x, bias, y

def check(y, expected, tolerance, name):
    error = ((y.double() - expected).norm() / expected.norm()).item()
    assert error < tolerance, f"{name}: relative error {error:.2e}, largest {(y.double() - expected).abs().max():.2e}"

def padded(x):
    return F.pad(x, (0, -x.shape[1] % 128))
"""

DECODE = """
for shape, config, with_bias, dtype in (
    ((1, 40, 384, 128), DecodeConfig(tiles=1, warps=2, slots=2, ahead=2), True, torch.float16),
    ((3, 64, 640, 64), DecodeConfig(tiles=2, warps=2, slots=1, chains=1), False, torch.bfloat16),
    ((13, 33, 320, 32), DecodeConfig(tiles=2, warps=2, slots=1), True, torch.float16),
):
    weight, x, bias, y = inputs(*shape, dtype)
    bias = bias if with_bias else None
    decode(padded(x), weight.packed, bias, y, weight.group_size, config, inline=False)
    check(y, reference.matmul(x, weight, bias), 4e-4 if dtype == torch.float16 else 6e-3, f"{shape} {config}")
"""

SWIGLU = """
for shape, config, dtype in (
    ((1, 128, 384, 128), DecodeConfig(tiles=2, warps=2, slots=1), torch.float16),
    ((3, 64, 320, 32), DecodeConfig(tiles=2, warps=4, slots=2), torch.float16),
    ((12, 192, 640, 64), DecodeConfig(tiles=2, warps=2, slots=1), torch.float16),
):
    weight, x, _, _ = inputs(*shape, dtype)
    gate, up = reference.matmul(x, weight).chunk(2, dim=-1)
    y = torch.full((shape[0], shape[1] // 2), torch.nan, dtype=dtype)
    decode(padded(x), weight.packed, None, y, weight.group_size, config, swiglu=True, inline=False)
    check(y, F.silu(gate) * up, 1e-3, f"swiglu {shape} {config}")
"""

NORMS = """
from vila_quant.kernels.cuda.w4a16.decode import Adding, Normed, num_parts

for config in (DecodeConfig(tiles=1, warps=2, slots=2), DecodeConfig(tiles=2, warps=4, slots=1)):
    first, x, _, h = inputs(1, 256, 384, 128, torch.float16)
    second, _, bias, y = inputs(1, 128, 256, 64, torch.float16)
    residual, gain = torch.randn(1, 256, generator=generator).half(), torch.rand(256, generator=generator).half()
    scaled, squares = torch.full_like(h, torch.nan), torch.full((num_parts(first.packed),), torch.nan)
    adding = Adding(residual, gain, scaled, squares)
    decode(x, first.packed, None, h, 128, config, adding=adding, inline=False)
    total = residual.double() + reference.matmul(x, first)
    check(h, total, 1e-3, "residual")
    check(scaled, total * gain.double(), 1e-3, "scaled")
    check(squares.sum()[None], (total**2).sum()[None], 2e-3, "squares")
    normed = Normed(squares, 3.0, 1e-5)
    decode(scaled, second.packed, bias, y, 64, config, normed=normed, inline=False)
    norm = F.rms_norm(total, (256,), 3 * gain.double(), 1e-5)
    check(y, reference.matmul(norm, second, bias), 2e-3, "linear of the norm")
    y = torch.full((1, 64), torch.nan, dtype=torch.float16)
    config = DecodeConfig(tiles=2, warps=4, slots=1)
    decode(scaled, second.packed, None, y, 64, config, normed=normed, swiglu=True, inline=False)
    gate, up = reference.matmul(norm, second).chunk(2, dim=-1)
    check(y, F.silu(gate) * up, 3e-3, "swiglu of the norm")
"""

HEADS = """
from vila_core.ops.attention import SplitHeads
from vila_core.ops.reference import rotate
from vila_quant.kernels.cuda.w4a16.decode import Adding, merges_heads, num_parts

assert not merges_heads(64, 128) and merges_heads(128, 128) and merges_heads(64, 32)
for columns, head_dim, group_size, position, config in (
    (384, 128, 128, 300, DecodeConfig(tiles=1, warps=2, slots=2, ahead=1)),
    (256, 64, 64, 63, DecodeConfig(tiles=2, warps=2, slots=1)),
    (256, 64, 32, 511, DecodeConfig(tiles=1, warps=4, slots=1)),
    (256, 128, 64, 512, DecodeConfig(tiles=1, warps=2, slots=1)),
):
    weight, _, _, h = inputs(1, 64, columns, group_size, torch.float16)
    heads, blocks = columns // head_dim, position // 64 + 1
    count = blocks if blocks <= 8 else 1
    parts = torch.full((8, columns), torch.nan, dtype=torch.float16)
    logs = torch.full((heads, 8), torch.nan)
    parts[:count] = torch.randn(count, columns, generator=generator)
    shares = torch.ones(heads, 1)
    if count > 1:
        logs[:, :count] = 3 * torch.randn(heads, count, generator=generator) - 20
        shares = (2.0 ** logs[:, :count].double()) / (2.0 ** logs[:, :count].double()).sum(-1, keepdim=True)
    x = parts[:count].double().view(count, heads, head_dim) * shares.T[..., None]
    residual, gain = torch.randn(1, 64, generator=generator).half(), torch.rand(64, generator=generator).half()
    adding = Adding(residual, gain, torch.full_like(h, torch.nan), torch.full((num_parts(weight.packed),), torch.nan))
    split = SplitHeads(parts, logs, head_dim, torch.tensor([position]), 0)
    decode(split, weight.packed, None, h, group_size, config, adding=adding, inline=False)
    check(h, residual.double() + reference.matmul(x.sum(0).view(1, -1), weight), 1e-3, f"{count} parts")
"""

TILES = """
for shape, config, with_bias in (
    ((19, 40, 384, 128), TileConfig(block_n=32, block_m=16, block_k=128, warps=4), True),
    ((33, 72, 256, 64), TileConfig(block_n=64, block_m=32, block_k=64, splits=2, warps=2), True),
    ((17, 33, 320, 32), TileConfig(block_n=64, block_m=32, block_k=64, splits=1, warps=4), False),
    ((17, 33, 320, 32), TileConfig(block_n=128, block_m=32, block_k=128, splits=3, warps=4), False),
    ((70, 128, 256, 32), TileConfig(block_n=32, block_m=16, block_k=128, splits=8, warps=4, resident=3), True),
):
    weight, x, bias, y = inputs(*shape, torch.float16)
    bias = bias if with_bias else None
    multiply_tiles(padded(x), weight.packed, bias, y, weight.group_size, config, multiprocessors=2, inline=False)
    check(y, reference.matmul(x, weight, bias), 5e-4, f"{shape} {config}")
"""

DEQUANTIZE = """
for (outputs, columns, group_size), dtype in (
    ((40, 384, 128), torch.float16), ((96, 128, 64), torch.bfloat16), ((33, 320, 32), torch.float16)
):
    weight, *_ = inputs(1, outputs, columns, group_size, dtype)
    blocks, units, _ = weight.packed.shape
    panel = torch.full((blocks * 32, units * 128), torch.nan, dtype=dtype)
    w = dequantize(weight.packed, group_size, panel, inline=False)
    tolerance = 3e-4 if dtype == torch.float16 else 6e-3
    check(w[:outputs, :columns], reference.dequantize(weight, torch.float64), tolerance, f"{outputs} x {columns}")
    assert w.isfinite().all()
"""


@pytest.mark.parametrize(
    "what",
    [DECODE, SWIGLU, NORMS, HEADS, TILES, DEQUANTIZE],
    ids=["decode", "swiglu", "norms", "heads", "tiles", "dequantize"],
)
def test_a_kernel_follows_the_oracle(what: str) -> None:
    run_interpreted(CHECK + what)
