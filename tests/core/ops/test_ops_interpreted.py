"""The operators in the CPU interpreter of Triton, in small, against the oracles in fp64."""

import sys

import pytest
from tests.interpreted_kernels import run_interpreted

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")

CHECK = """
import torch
from vila_core.ops import reference

generator = torch.Generator().manual_seed(0)
F16, F32 = torch.float16, torch.float32

def randn(*shape, dtype=F16):
    return torch.randn(*shape, generator=generator).to(dtype)

def fill_new_tensors_with_nan():
    # Whatever a kernel does not write shows as NaN.
    original = torch.Tensor.new_empty
    def new_empty(self, *shape, **options):
        made = original(self, *shape, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made.fill_(-7)
    torch.Tensor.new_empty = new_empty

fill_new_tensors_with_nan()

def check(y, expected, tolerance, name):
    assert y.shape == expected.shape, (name, y.shape, expected.shape)
    error = ((y.double() - expected).norm() / expected.norm()).item()
    largest = (y.double() - expected).abs().max().item()
    assert error <= tolerance, f"{name}: relative error {error:.2e}, largest {largest:.2e}"
"""

NORM = """
from vila_core.ops.norm import add_rms_norm
for rows, width, dtype, tolerance in ((1, 40, F16, 1e-3), (3, 300, F16, 1e-3), (5, 128, F32, 1e-6)):
    x, residual, weight = randn(rows, width, dtype=dtype), randn(rows, width, dtype=dtype), randn(width, dtype=dtype)
    for given in (None, residual):
        y, h = add_rms_norm(x, given, weight, 1e-6)
        expected = reference.add_rms_norm(x.double(), None if given is None else given.double(), weight.double(), 1e-6)
        check(y, expected[0], tolerance, f"y {rows} {width} {dtype}")
        check(h, expected[1], tolerance, f"h {rows} {width} {dtype}")
"""

SWIGLU = """
from vila_core.ops.swiglu import swiglu
for rows, width in ((1, 24), (3, 1030)):
    gate_up = randn(rows, 2 * width)
    check(swiglu(gate_up), reference.swiglu(gate_up.double()), 1e-3, f"{rows} {width}")
"""

LINEAR = """
from vila_core.ops.linear import gelu_linear, linear, swiglu_linear
for tokens, sizes, inputs, with_bias in (
    (1, (6,), 40, False), (1, (8, 4, 4), 1000, True), (1, (3, 5), 4200, False),
    (3, (32, 64, 16), 264, True), (16, (50,), 520, True), (17, (8, 8), 64, True), (2, (5, 3), 64, False),
    (8, (7, 20, 3), 2056, True), (2, (17,), 8, False), (9, (32, 5), 72, True), (9, (5, 3), 64, False),
):
    x, weights = randn(tokens, inputs), [randn(size, inputs) for size in sizes]
    biases = [randn(size) if with_bias and i != 1 else None for i, size in enumerate(sizes)]
    expected = reference.linear(
        x.double(), [w.double() for w in weights], [None if b is None else b.double() for b in biases]
    )
    check(linear(x, weights, biases), expected, 1e-3, f"{tokens} {sizes} {inputs}")
wide = randn(5, 80)[1:, 4:68]
weight = randn(1, 24 * 64 + 4)[0, 4:].view(24, 64)
check(linear(wide, [weight], [None]), wide.double() @ weight.double().T, 1e-3, "not aligned to 16 bytes")
x, weight = randn(8, 264), randn(40, 264)
one_by_one = torch.cat([linear(torch.stack((row, row)), [weight], [None])[:1] for row in x])
assert torch.equal(linear(x, [weight], [None]), one_by_one), "a token depends on the others"
for tokens, outputs, inputs in ((1, 12, 1032), (1, 7, 4400), (2, 32, 64), (7, 11, 72), (9, 32, 64)):
    x, gate, up = randn(tokens, inputs) / inputs**0.5, randn(outputs, inputs), randn(outputs, inputs)
    expected = reference.swiglu(reference.linear(x.double(), (gate.double(), up.double()), (None, None)))
    check(swiglu_linear(x, gate, up), expected, 2e-3, f"swiglu {tokens} {outputs} {inputs}")
for tokens, outputs, inputs in ((1, 24, 72), (2, 40, 1032), (3, 10, 68), (9, 40, 264), (17, 8, 64)):
    x, weight, bias = randn(tokens, inputs), randn(outputs, inputs) / 8, randn(outputs)
    expected = torch.nn.functional.gelu(torch.nn.functional.linear(x.double(), weight.double(), bias.double()))
    check(gelu_linear(x, weight, bias), expected, 1e-3, f"gelu {tokens} {outputs} {inputs}")
"""

ROTARY = """
from vila_core.ops.rotary import rotate_and_write
for rows, heads, kv_heads, width in ((1, 4, 2, 16), (3, 3, 1, 64)):
    qkv = randn(rows, (heads + 2 * kv_heads) * width)
    angle = torch.rand(20, width // 2, generator=generator) * 6
    positions = torch.tensor([7, -1, 19][:rows])
    keys, values = randn(rows, kv_heads, 20, width), randn(rows, kv_heads, 20, width)
    doubles = [t.double() for t in (qkv, angle.cos(), angle.sin())]
    expected = reference.rotate_and_write(*doubles, positions, keys.double(), values.double())
    q = rotate_and_write(qkv, angle.cos(), angle.sin(), positions, keys, values)
    for name, got, wanted in zip(("q", "keys", "values"), (q, keys, values), expected, strict=True):
        check(got, wanted, 1e-3, name)
"""

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

SAMPLING = """
import math
from vila_core.ops import filters, sampling
from vila_core.ops.sampling import choose_tokens

filters.BLOCK = sampling.BLOCK = 256  # several blocks of a small vocabulary
rows, vocabulary = 7, 300
values = {
    "temperature": torch.tensor([0.0, 0.7, 1.0, 1.5, 0.5, 1.0, 0.8]),
    "top_k": torch.tensor([0, 5, 0, 1, 20, 0, 200], dtype=torch.int32),
    "top_p": torch.tensor([0.3, 1.0, 0.5, 1.0, 0.9, 1.0, 0.999]),
    "seeds": torch.arange(rows) + 2**40,
    "penalty": torch.tensor([1.0, 1.3, 1.0, 0.7, 1.0, 2.0, 1.0]),
    "presence": torch.tensor([0.0, 0.0, 2.0, -1.0, 0.3, 0.0, 0.0]),
    "frequency": torch.tensor([0.0, 0.0, 0.0, 0.4, -2.0, 1.5, 0.0]),
}
allowed = torch.randint(-(2**31), 2**31, (rows, -(-vocabulary // 32)), generator=generator).int()
allowed[3:] = -1
counts = (torch.randint(10, (rows, vocabulary), generator=generator) - 6).clamp(min=0).int()
bias = torch.randn(rows, vocabulary, generator=generator) * (torch.arange(rows) > 3)[:, None]

class Rows:
    def __init__(self, positions, *, of=slice(None)):
        self.ids, self.positions = torch.full((rows,), 7)[of].clone(), positions[of].clone()
        self.counts, self.bias = counts[of].clone(), bias[of].clone()
        self.given = {name: value[of] for name, value in values.items()}
        self.allowed = allowed[of]

    def choose(self, function, logits, ahead, *flags):
        v = self.given
        return function(
            logits, self.ids, self.positions, v["temperature"], v["top_k"], v["top_p"], v["seeds"], v["penalty"],
            v["presence"], v["frequency"], self.counts, self.bias, self.allowed, ahead, *flags,
        )

for dtype, penalizes, masks in ((F32, False, False), (F16, True, False), (torch.bfloat16, False, True)):
    logits = (torch.randn(rows, vocabulary, generator=generator) * 3).to(dtype)
    positions = torch.tensor([3, 9, 100, 0, 5, 8, 2])
    greedy, expected = Rows(positions), Rows(positions)
    flags = (False, False, False, penalizes, masks)
    chosen = greedy.choose(choose_tokens, logits, 1, *flags)
    assert torch.equal(chosen, expected.choose(reference.choose_tokens, logits, 1, *flags))
    assert torch.equal(greedy.ids, chosen) and torch.equal(greedy.positions, positions + 1)
    assert torch.equal(greedy.counts, expected.counts)
    x = logits.float()
    if penalizes:
        penalty, presence, frequency = (values[name][:, None] for name in ("penalty", "presence", "frequency"))
        x = torch.where(counts > 0, torch.where(x < 0, x * penalty, x / penalty), x)
        x = x - counts * frequency - (counts > 0) * presence + bias
    if masks:
        x = x.masked_fill(~reference.allowed_tokens(allowed, vocabulary), -math.inf)
    kept = [
        reference.kept_tokens((row / t).double(), int(k), float(p)) if t else row == row.max()
        for row, t, k, p in zip(x, values["temperature"].tolist(), values["top_k"], values["top_p"], strict=True)
    ]
    ids = Rows(positions).choose(choose_tokens, logits, 1, True, True, True, penalizes, masks)
    for row, token in enumerate(ids.tolist()):
        assert kept[row][token], f"row {row} chose {token} of {kept[row].sum()}"
    alone = Rows(positions, of=slice(4, 5))
    one = alone.choose(choose_tokens, logits[4:5].contiguous(), 1, True, True, True, penalizes, masks)
    assert one.item() == ids[4].item(), "a row depends on its batch"
    if masks:
        later = Rows(positions + 1)
        first = later.choose(choose_tokens, logits, 0, True, True, True, penalizes, masks)
        assert torch.equal(first, ids), "noise depends on more than the position of the new token"
        assert torch.equal(later.positions, positions + 1)

def draw(x, count, k, p):
    state = torch.zeros(count, dtype=torch.int64)
    ids = choose_tokens(
        x.expand(count, -1).contiguous(), state.clone(), state.clone(), torch.full((count,), 0.9),
        torch.full((count,), k, dtype=torch.int32), torch.full((count,), p), torch.arange(count), torch.ones(count),
        torch.zeros(count), torch.zeros(count), torch.zeros(count, x.shape[-1], dtype=torch.int32),
        torch.zeros(count, x.shape[-1]), torch.zeros(count, 1, dtype=torch.int32), 1, True, k > 0,
        p < 1, False, False,
    )
    return torch.bincount(ids, minlength=x.shape[-1]) / count

# Which tokens can be drawn: all that are kept, and no others.
small = torch.tensor([2.0, 1.0, 1.0, 0.5, -1.0, -5.0])
for dtype, k, p in (
    (F16, 2, 1.0), (torch.bfloat16, 4, 0.6), (torch.bfloat16, 0, 0.45), (torch.bfloat16, 0, 1e-6), (F32, 0, 0.9),
    (torch.bfloat16, 99, 1.0),
):
    shares = draw(small.to(dtype), 20, k, p)
    kept = reference.kept_tokens(small.double() / 0.9, k, p)
    assert (shares[~kept] == 0).all(), (dtype, k, p, shares)
    assert (shares[kept & (small > 0.9)] > 0).all(), (dtype, k, p, shares)
shares = draw(small, 500, 0, 1.0)
assert (shares - (small / 0.9).softmax(-1)).abs().max() < 0.06, shares

# Logits that cannot be used, and rows that are not in use.
logits = torch.randn(rows, vocabulary, generator=generator)
logits[1, 299], logits[2, 0], logits[3] = math.nan, math.inf, 2.5
logits[4, 17] = -math.inf
positions = torch.tensor([3, 9, 100, 0, 5, -1, 2])
for flags in ((False,) * 5, (True, False, False, True, False)):
    state = Rows(positions)
    chosen = state.choose(choose_tokens, logits, 1, *flags)
    assert chosen[1:6].tolist() == [reference.UNUSABLE] * 5 and (chosen[[0, 6]] >= 0).all()
    assert state.positions.tolist() == [4, 10, 101, 1, 6, -1, 3] and state.ids[5] == 7
    assert ((0 <= state.ids) & (state.ids < vocabulary)).all()
    assert torch.equal(state.counts[5], counts[5])
"""


STEP = """
from vila_core.config import DecoderConfig
from vila_core.language.decoder import Decoder
from vila_core.language.fused_step import FusedStep, PagedView
from vila_core.language.paged_cache import PagedCache

torch.manual_seed(0)
config = DecoderConfig.model_validate({
    "architecture": "qwen2", "vocab_size": 50, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64, "max_position_embeddings": 128,
    "attention_bias": True, "max_length": 128,
})
decoder = Decoder(config)
decoder.reset_parameters(std=0.1)
decoder = decoder.to(F16).requires_grad_(False)
exact = Decoder(config)
exact.load_state_dict({name: tensor.double() for name, tensor in decoder.state_dict().items()})
exact = exact.double().requires_grad_(False)
lengths = torch.tensor([70, 3])
prompt = randn(2, 70, 64)
table = torch.tensor([[3, 0], [1, 2]], dtype=torch.int32)
caches = [
    PagedCache.allocate(config, 4, device=prompt.device, dtype=dtype) for dtype in (F16, torch.float64)
]
for model, cache in zip((decoder, exact), caches, strict=True):
    model(prompt.to(cache.keys.dtype), cache=cache.rows(table).up_to(70), lengths=lengths)
view = PagedView(caches[0], table, torch.zeros(2, dtype=torch.int32))
step = FusedStep(decoder)
for number in range(2):
    x, positions = randn(2, 64), lengths + number
    rows = caches[1].rows(table).up_to(71 + number)
    expected = exact.decode_step(x.double()[:, None], positions[:, None], rows)[:, 0]
    check(step(x, positions, view), expected, 3e-3, f"step {number}")
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

DEPTH_STEPS = """
from vila_core.config import DepthTransformerConfig
from vila_core.generation.depth_transformer import DepthTransformer, ModuleDepthSteps
from vila_core.generation.fused_depth import FusedDepthSteps

config = DepthTransformerConfig(
    hidden_size=24, embed_dim=48, num_hidden_layers=2, num_attention_heads=4, code_width=40, codebook_size=50,
    code_depth=3, grid=(2, 2),
)
torch.manual_seed(0)
transformer = DepthTransformer(config).eval().requires_grad_(False)
for parameter in transformer.parameters():
    parameter.copy_(torch.randn_like(parameter) / 5 + (parameter == 1))
exact, half = transformer.double(), DepthTransformer(config).eval().requires_grad_(False)
half.load_state_dict(exact.state_dict())
half.to(F16)
for rows in (1, 4, 17):
    hidden, sums = randn(rows, 24), [randn(rows, 40) for _ in range(2)]
    steps, expected = FusedDepthSteps(half, hidden), ModuleDepthSteps(exact, hidden.double())
    for depth in range(3):
        x, y = (
            one.read_codes(sums[depth - 1].to(dtype)) if depth else one.read_hidden(hidden.to(dtype))
            for one, dtype in ((steps, F16), (expected, torch.float64))
        )
        check(steps.logits(x, depth), expected.logits(y, depth), 5e-3, f"{rows} rows, depth {depth}")
"""


CODES = """
import math
from vila_core.ops.codes import choose_codes
from vila_core.ops.sampling import choose_tokens

rows, vocabulary = 9, 300
companions, leaders = torch.tensor([1, 1, 3, 3, 4, 5, 7, 7, 8]), torch.tensor([0, 0, 2, 2, 4, 5, 6, 6, 8])
guidance = torch.tensor([3.0, 1, 0.5, 1, 1, 1, 2, 1, 1])
settings = {
    "temperature": torch.tensor([1.0, 1, 0.7, 1, 0.0, 1.5, 0.9, 1, 1]),
    "top_k": torch.tensor([20, 0, 0, 0, 5, 1, 299, 0, 0], dtype=torch.int32),
    "top_p": torch.tensor([0.9, 1, 0.5, 1, 1, 1, 0.999, 1, 1]),
    "seeds": torch.arange(rows) * 2**40 + 3,
}
positions = torch.tensor([3, -1, 100, -1, 0, 8, 2, -1, -1])
ones, blank = torch.ones(rows), torch.zeros(rows, vocabulary)
for seed, dtype in enumerate((torch.bfloat16, F16, F32)):
    logits = (torch.randn(rows, vocabulary, generator=generator) * 3).to(dtype)
    if dtype == F32:
        logits[6, 17], logits[5, 3] = math.nan, -math.inf
    unconditional = logits.float()[companions]
    guided = unconditional + guidance[:, None] * (logits.float() - unconditional)
    for flags in ((True, True, True), (True, True, False), (True, False, True), (True, False, False), (False,) * 3):
        # The kernel chooses what guidance and the kernels of tokens choose.
        ids = torch.zeros(rows, dtype=torch.int64)
        expected = choose_tokens(
            guided, ids, positions.clone(), *settings.values(), ones, blank[:, 0], blank[:, 0], blank.int(), blank,
            blank.int(), 2, *flags, False, False,
        )
        given = (logits, companions, leaders, guidance, *settings.values(), positions, 2)
        codes, chosen = choose_codes(*given, *flags)
        assert torch.equal(chosen, torch.where(leaders == torch.arange(rows), expected, reference.UNUSABLE)), flags
        usable = chosen[leaders] >= 0
        assert torch.equal(codes[usable], ids[leaders][usable])
        assert ((0 <= codes) & (codes < vocabulary)).all()
        assert chosen.tolist()[1::2] == [-1, -1, -1 if dtype == F32 else chosen[5], -1] and chosen[8] == -1
        if not flags[0]:
            assert all(torch.equal(*both) for both in zip((codes[usable], chosen), (
                reference.choose_codes(*given, *flags)[0][usable], reference.choose_codes(*given, *flags)[1],
            ), strict=True))
assert chosen[6] == -1, "NaN"
"""


EXCHANGE = """
from vila_core.errors import GenerationError
from vila_core.ops import exchange
exchange.PATIENCE = 3
for world, width in ((2, 64), (3, 200)):
    peers = exchange.new_peers([torch.device("cpu")] * world, 4, width, F16)
    positions = torch.tensor([7, -1, 0])
    for number in range(1, 5):
        parts, total, weight = [randn(3, width) for _ in range(world)], randn(3, width), randn(width)
        results = []
        for peer in peers:  # one after the other, so each finds what the others write as if it had come
            for other, part in enumerate(parts):
                if other != peer.rank:
                    peer.inbox[number % 2, other, :3] = part
                    peer.flags[other, :3] = number
            results.append(peer(parts[peer.rank], total, weight, 1e-6, positions))
        used = [0, 2]
        for peer in peers:
            assert peer.counts.tolist() == [number, 0, number, 0]
            for other, part in enumerate(parts):
                if other != peer.rank:
                    assert torch.equal(peer.inbox[number % 2, other, used], part[used])
                    assert peer.flags[other, 3] == 0
        exact = total.double() + sum(part.double() for part in parts)
        for y, h in results:
            assert torch.equal(y[used], results[0][0][used]) and torch.equal(h[used], results[0][1][used])
            check(h[used], exact[used], 1e-3, f"h {world} {width}")
            normed = reference.add_rms_norm(exact[used], None, weight.double(), 1e-6)[0]
            check(y[used], normed, 2e-3, f"y {world} {width}")
    assert not any(peer.failed.item() for peer in peers)
    y, h = peers[1](parts[1], total, weight, 1e-6, positions)  # nobody else comes
    assert y[used].isnan().all() and h[used].isnan().all() and peers[1].failed.item() == 1
    exchange.require_meeting(peers[:1])
    try:
        exchange.require_meeting(peers)
    except GenerationError as error:
        assert "cpu waited in vain" in str(error)
    else:
        raise AssertionError("a GPU that did not come is an error")
    peers[1].flags[:] = 99
    assert peers[1](parts[1], total, weight, 1e-6, positions)[0][used].isnan().all()  # it stays failed
"""


OPERATORS = """
import importlib, pkgutil
import torch
import vila_core.ops
from torch.library import opcheck

for module in pkgutil.iter_modules(vila_core.ops.__path__):
    importlib.import_module(f"vila_core.ops.{module.name}")

def randn(*shape, dtype=torch.float16):
    return torch.randn(*shape).to(dtype)

def zeros(*shape, dtype=torch.int64):
    return torch.zeros(*shape, dtype=dtype)

heads, kv, width, slots = 4, 2, 64, 64
qkv, positions = randn(2, (heads + 2 * kv) * width), torch.tensor([3, 0])
angles = randn(slots, width // 2, dtype=torch.float32), randn(slots, width // 2, dtype=torch.float32)
caches = randn(2, kv, slots, width), randn(2, kv, slots, width)
codes = zeros(2, kv, slots, width, dtype=torch.uint8), zeros(2, kv, slots, width, dtype=torch.uint8)
scales = torch.ones(2, kv, slots).bfloat16(), torch.ones(2, kv, slots).bfloat16()
counters, table = zeros(2 * kv, dtype=torch.int32), torch.tensor([[1], [0]], dtype=torch.int32)
x, wide, w, b = randn(3, 40), randn(3, 80), [randn(32, 40), randn(16, 40)], [randn(32), randn(16)]
vocabulary = 50

def sampling(dtype):
    floats, integers = torch.ones(2), zeros(2, dtype=torch.int32)
    given = {
        "logits": randn(2, vocabulary, dtype=dtype), "ids": zeros(2), "positions": zeros(2), "seeds": zeros(2),
        "top_k": integers + 3, "allowed": zeros(2, 2, dtype=torch.int32) - 1, "ahead": 1,
    }
    made = []
    for argument in torch.ops.vila.choose_tokens.default._schema.arguments:
        if argument.name in given:
            made.append(given[argument.name])
        elif str(argument.type) == "bool":
            made.append(True)
        elif argument.name in EXTRA:
            made.append(EXTRA[argument.name])
        else:
            assert str(argument.type) == "Tensor", argument
            made.append(floats.clone())
    return tuple(made)

EXTRA = {
    "seen": zeros(2, vocabulary, dtype=torch.bool), "counts": zeros(2, vocabulary, dtype=torch.int32),
    "bias": randn(2, vocabulary, dtype=torch.float32),
}
CALLS = {
    "add_rms_norm": [(x, None, randn(40), 1e-6), (x, randn(3, 40), randn(40), 1e-6)],
    "swiglu": [(wide,)],
    "rows": [
        (x, None, None, None, None, 0.0, "gelu", None, 1.0, 0.0),
        (x, randn(3, 40), randn(40), randn(40), randn(40), 1e-6, "", torch.int8, 127.0, 1e-5),
    ],
    "small_linear": [(x, w, b, False), (x[:1], w, [], False), (x[:1], [w[0]] * 2, [], True), (x, w, b, False, "gelu"),
                     (x, [w[0]] * 2, [], True)],
    "depth_attention": [(randn(3, 72), randn(3, 2, 4, 12), randn(3, 2, 4, 12), 1)],
    "choose_codes": [
        (x, *torch.arange(3).expand(2, 3), torch.ones(3), torch.ones(3), zeros(3, dtype=torch.int32), torch.ones(3),
         zeros(3), zeros(3), 1, True, True, True),
    ],
    "decode_attention": [
        (qkv, *angles, positions, *caches, None, None, counters, None, 0),
        (qkv, *angles, positions, *codes, *scales, counters, table, 0),
    ],
    "rotate_and_write": [(qkv, *angles, positions, *caches)],
    "rotate_heads": [(randn(1, 3, heads, width), randn(1, 3, kv, width), randn(1, 1, 3, width), randn(1, 1, 3, width))],
    "silu_multiply": [(x, randn(3, 40))],
    "quantize_heads": [(randn(1, kv, 3, width),), (randn(2, 3, kv, width).transpose(1, 2),)],
    "choose_tokens": [sampling(torch.float16), sampling(torch.float32)],
}
known = {name.partition("::")[2].partition(".")[0] for name in torch._C._dispatch_get_all_op_names()
         if name.startswith("vila::")}
assert known == set(CALLS), known ^ set(CALLS)
for name, calls in CALLS.items():
    for call in calls:
        opcheck(getattr(torch.ops.vila, name).default, call, test_utils=("test_schema", "test_faketensor"))
"""


@pytest.mark.parametrize(
    "what",
    [
        NORM,
        SWIGLU,
        LINEAR,
        ROTARY,
        ATTENTION,
        EIGHT_BITS,
        ATTENTION_IN_8_BITS,
        DEPTH_ATTENTION,
        DEPTH_STEPS,
        SAMPLING,
        CODES,
        STEP,
        EXCHANGE,
    ],
    ids=[
        "norm",
        "swiglu",
        "linear",
        "rotary",
        "attention",
        "8 bits",
        "attention in 8 bits",
        "depth attention",
        "depth steps",
        "sampling",
        "codes",
        "step",
        "exchange",
    ],
)
def test_an_operator_follows_the_oracle(what: str) -> None:
    run_interpreted(CHECK + what)


def test_operators_say_what_they_return_and_change() -> None:
    """For `torch.compile`: shapes without running a kernel, and which arguments are written."""
    run_interpreted(OPERATORS)
