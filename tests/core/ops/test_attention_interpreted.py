"""Attention of one token per row, also to a cache in 8 bits and in the depth transformer, in the interpreter."""

import sys

import pytest
from tests.core.ops.oracles import run_checks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")

ATTENTION = """
import math
from vila_core.ops import attention
from vila_core.ops.attention import NewTokens, Slots, attend_in_parts, decode_attention

for heads, kv_heads, width, slots, positions, window in (
    (14, 2, 64, 300, (0, 299, 64, -1), 0),
    (2, 2, 128, 200, (130, 63), 0),
    (4, 1, 64, 400, (399, 100, 5), 70),
):
    for splits in (2, 64):
        attention.MAX_SPLITS = splits
        rows = len(positions)
        qkv = randn(rows, (heads + 2 * kv_heads) * width)
        angle = torch.rand(slots, width // 2, generator=generator) * 6
        cos, sin, places = angle.cos(), angle.sin(), torch.tensor(positions)
        shape = (rows, kv_heads, slots, width)
        keys, values = torch.full(shape, torch.nan, dtype=F16), torch.full(shape, torch.nan, dtype=F16)
        for row, position in enumerate(positions):
            if position > 0:
                keys[row, :, :position] = randn(kv_heads, position, width)
                values[row, :, :position] = randn(kv_heads, position, width)
        expected, *expected_caches = reference.decode_attention(
            qkv.double(), cos.double(), sin.double(), places, keys.double(), values.double(), window or None
        )
        counters = torch.zeros(rows * kv_heads, dtype=torch.int32)
        # Pages in another order, in a pool with room left.
        table = torch.randperm(rows * -(-slots // 64) + 3, generator=generator)[: rows * -(-slots // 64)]
        table = table.view(rows, -1).int()
        pools = [torch.full((table.numel() + 3, kv_heads, 64, width), torch.nan, dtype=F16) for _ in range(2)]
        for pool, cache in zip(pools, (keys, values), strict=True):
            for slot in range(slots):
                pool[table[:, slot // 64].long(), :, slot % 64] = cache[:, :, slot]
        paged = decode_attention(qkv, cos, sin, places, *pools, counters, table, window)
        out = decode_attention(qkv, cos, sin, places, keys, values, counters, None, window)
        name = f"{heads} heads, {positions}, {splits} splits"
        check(out, expected, 1e-3, name)
        check(paged, expected, 1e-3, "paged, " + name)
        for row, position in enumerate(positions):  # alone, with the parts left for the next linear
            one = slice(row, row + 1)
            new = NewTokens(qkv[one], cos, sin, places[one], window)
            split = attend_in_parts(new, Slots(keys[one], values[one]), counters)
            first = max(0, position + 1 - window) // 64 if window else 0
            blocks = -(-(position + 1) // 64) - first
            count = blocks if 0 < blocks <= len(split.parts) else 1
            shares = torch.softmax(split.logs[:, :count].double() * math.log(2), dim=-1) if count > 1 else 1.0
            merged = split.parts[:count].double().view(count, heads, width).permute(1, 0, 2)
            merged = (merged * (shares[..., None] if count > 1 else 1.0)).sum(1).view(1, -1)
            if position >= 0:
                check(merged, expected[one], 1e-3, f"{count} parts, " + name)
        assert not counters.any()
        for got, wanted in zip((keys, values), expected_caches, strict=True):
            written = wanted.isfinite()
            assert torch.equal(got.isfinite(), written)
            check(got[written], wanted[written], 1e-3, "cache, " + name)
"""

EIGHT_BITS = """
from vila_core.ops import eight_bits
from vila_core.ops.eight_bits_kernel import quantize_heads

wild = torch.randint(0, 2**15, (2, 3, 5, 64), generator=generator).to(torch.int16).view(F16)  # of any magnitude
steps = torch.linspace(-448, 448, 1920).view(2, 3, 5, 64).to(F16)
for x in (
    wild, randn(2, 3, 5, 64), randn(1, 1, 7, 128) * 1e-4, randn(1, 2, 3, 64).bfloat16() * 1e30, steps, steps / 448,
    torch.zeros(1, 1, 1, 64, dtype=F16), randn(3, 4, 2, 64).transpose(1, 2),
):
    codes, scales, y = quantize_heads(x)
    expected = eight_bits.quantize(x)
    assert torch.equal(codes, expected[0]), (codes.int() - expected[0].int()).abs().max()
    assert torch.equal(scales, expected[1])
    assert torch.equal(y, expected[2])
    assert y.isfinite().all()
    if x.abs().max() > 0.01:  # the steps of smaller heads are finer than those of fp16
        again = eight_bits.quantize(y)
        assert torch.equal(again[2], y), "quantizing twice changes numbers"
"""

ATTENTION_IN_8_BITS = """
from vila_core.ops import attention, eight_bits
from vila_core.ops.attention import decode_attention

def rounded(x):
    return eight_bits.quantize(x)[2]

for heads, kv_heads, width, slots, positions, window, largest_angle in (
    (14, 2, 64, 200, (0, 199, 64, -1), 0, 6),
    (2, 2, 128, 200, (130, 63), 0, 6),
    (4, 1, 64, 300, (299, 100, 5), 70, 0),
):
    for splits, magnitude in ((2, 1.0), (64, 0.02)):
        attention.MAX_SPLITS = splits
        rows, pages = len(positions), -(-slots // 64)
        qkv = randn(rows, (heads + 2 * kv_heads) * width)
        qkv[:, (heads + kv_heads) * width:] *= magnitude
        angle = torch.rand(slots, width // 2, generator=generator) * largest_angle
        cos, sin, places = angle.cos(), angle.sin(), torch.tensor(positions)
        shape = (rows, kv_heads, slots, width)
        keys, values = torch.zeros(shape, dtype=F16), torch.zeros(shape, dtype=F16)
        # Codes that nobody wrote are NaN, scales too.
        pools = [torch.full((rows * pages, kv_heads, 64, width), 0x7F, dtype=torch.uint8) for _ in range(2)]
        scales = [torch.full(pool.shape[:3], torch.nan, dtype=torch.bfloat16) for pool in pools]
        table = torch.randperm(rows * pages, generator=generator).view(rows, -1).int()
        for row, position in enumerate(positions):
            for cache, pool, of_pool, size in zip((keys, values), pools, scales, (1.0, magnitude), strict=True):
                given = (randn(kv_heads, max(position, 0), width) * size).half()
                codes, scale, cache[row, :, : max(position, 0)] = eight_bits.quantize(given)
                for slot in range(position):
                    pool[table[row, slot // 64], :, slot % 64] = codes[:, slot]
                    of_pool[table[row, slot // 64], :, slot % 64] = scale[:, slot]
        expected, *caches = reference.decode_attention(
            qkv.double(), cos.double(), sin.double(), places, keys.double(), values.double(), window or None, rounded
        )
        counters = torch.zeros(rows * kv_heads, dtype=torch.int32)
        out = decode_attention(qkv, cos, sin, places, *pools, counters, table, window, scales)
        check(out, expected, 2e-3, f"{heads} heads, {positions}, {splits} splits")
        for pool, of_pool, wanted, old in zip(pools, scales, caches, (keys, values), strict=True):
            for row, position in enumerate(positions):
                if position >= 0:
                    place = table[row, position // 64], slice(None), position % 64
                    got = eight_bits.dequantize(pool[place], of_pool[place], F32)
                    check(got, wanted[row, :, position], 3e-2 if largest_angle else 0.0, "the new token")
        for pool, of_pool in zip(pools, scales, strict=True):
            assert (pool == 0x7F).all(-1).sum() == of_pool.isnan().sum(), "a token has codes or a scale, not both"

# What is not finite shows in the result, and is not written.
position, counters = torch.tensor([3]), torch.zeros(1, dtype=torch.int32)
pools = [torch.zeros(1, 1, 64, 64, dtype=torch.uint8) for _ in range(2)]
scales = [torch.ones(1, 1, 64).bfloat16() for _ in range(2)]
for part in range(3):
    qkv = randn(1, 3 * 64)
    qkv[0, 64 * part + 5] = torch.nan
    table = torch.zeros(1, 1, dtype=torch.int32)
    out = decode_attention(qkv, cos[:, :32], sin[:, :32], position, *pools, counters, table, 0, scales)
    assert out.isnan().any()
    assert all(eight_bits.dequantize(*pair, F32).isfinite().all() for pair in zip(pools, scales, strict=True))
"""

DEPTH_ATTENTION = """
from vila_core.ops.depth_attention import depth_attention
rows, heads, depths, width = 3, 5, 6, 12
keys, values = torch.full((2, rows, heads, depths, width), torch.nan, dtype=F16).unbind()
for depth in range(depths):
    qkv = randn(rows, 3 * heads * width)
    expected = reference.depth_attention(qkv.double(), keys.double(), values.double(), depth)
    check(depth_attention(qkv, keys, values, depth), expected[0], 1e-3, f"depth {depth}")
    for cache, after in zip((keys, values), expected[1:], strict=True):
        assert torch.equal(cache.double().nan_to_num(-7), after.nan_to_num(-7)), f"cache at depth {depth}"
"""


@pytest.mark.parametrize(
    "what",
    [
        pytest.param(ATTENTION, id="16 bits"),
        pytest.param(EIGHT_BITS, id="quantization"),
        pytest.param(ATTENTION_IN_8_BITS, id="8 bits"),
        pytest.param(DEPTH_ATTENTION, id="depth"),
    ],
)
def test_attention_follows_the_oracle(what: str) -> None:
    run_checks(what)
