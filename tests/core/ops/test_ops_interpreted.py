"""The operators in the CPU interpreter of Triton, in small, against the oracles in fp64."""

import os
import subprocess
import sys

import pytest

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
    assert error < tolerance, f"{name}: relative error {error:.2e}, largest {largest:.2e}"
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
from vila_core.ops.linear import linear, swiglu_linear
for tokens, sizes, inputs, with_bias in (
    (1, (6,), 40, False), (1, (8, 4, 4), 1000, True), (1, (3, 5), 4200, False),
    (3, (32, 64, 16), 264, True), (16, (50,), 520, True), (17, (8, 8), 64, True), (2, (5, 3), 64, False),
):
    x, weights = randn(tokens, inputs), [randn(size, inputs) for size in sizes]
    biases = [randn(size) if with_bias and i != 1 else None for i, size in enumerate(sizes)]
    expected = reference.linear(
        x.double(), [w.double() for w in weights], [None if b is None else b.double() for b in biases]
    )
    check(linear(x, weights, biases), expected, 1e-3, f"{tokens} {sizes} {inputs}")
for tokens, outputs, inputs in ((1, 12, 1032), (1, 7, 4400), (2, 32, 64)):
    x, gate, up = randn(tokens, inputs) / inputs**0.5, randn(outputs, inputs), randn(outputs, inputs)
    expected = reference.swiglu(reference.linear(x.double(), (gate.double(), up.double()), (None, None)))
    check(swiglu_linear(x, gate, up), expected, 2e-3, f"swiglu {tokens} {outputs} {inputs}")
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
from vila_core.ops import attention
from vila_core.ops.attention import cache_address, decode_attention, decode_attention_at

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
        wide = [torch.full((3, *shape), torch.nan, dtype=F16) for _ in range(2)]
        for buffer, cache in zip(wide, (keys, values), strict=True):
            buffer[1] = cache
        address = torch.tensor(cache_address(*wide))
        indirect = decode_attention_at(
            address, 1, qkv, cos, sin, places, counters, num_kv_heads=kv_heads, window=window
        )
        out = decode_attention(qkv, cos, sin, places, keys, values, counters, None, window)
        name = f"{heads} heads, {positions}, {splits} splits"
        check(out, expected, 1e-3, name)
        check(paged, expected, 1e-3, "paged, " + name)
        check(indirect, expected, 1e-3, "indirect, " + name)
        assert not counters.any()
        for got, elsewhere, wanted in zip((keys, values), wide, expected_caches, strict=True):
            written = wanted.isfinite()
            assert torch.equal(got.isfinite(), written)
            check(got[written], wanted[written], 1e-3, "cache, " + name)
            assert torch.equal(elsewhere[1][written], got[written])
"""

SAMPLING = """
import math
from vila_core.ops.sampling import sample

rows, vocabulary = 6, 5000
logits = randn(rows, vocabulary, dtype=F32) * 3
logits[2, 7] = math.nan
temperature = torch.tensor([0.0, 0.7, 1.0, 1.5, 0.5, 1.0])
top_k = torch.tensor([0, 5, 0, 1, 20, 0], dtype=torch.int32)
top_p = torch.tensor([0.3, 1.0, 0.5, 1.0, 0.9, 1.0])
seeds = torch.arange(rows) + 2**40
steps = torch.zeros(rows, dtype=torch.int64)
greedy = sample(logits, temperature * 0, top_k, top_p, seeds, steps, True)
clean = logits.nan_to_num(nan=-math.inf)
assert torch.equal(greedy, clean.argmax(-1))
kept = [
    reference.kept_tokens((row / t).double(), int(k), float(p)) if t else row == row.max()
    for row, t, k, p in zip(clean, temperature.tolist(), top_k, top_p, strict=True)
]
for step in range(8):
    ids = sample(logits, temperature, top_k, top_p, seeds, steps + step)
    for row, token in enumerate(ids.tolist()):
        assert kept[row][token], f"row {row} chose {token}"
    one = slice(4, 5)
    alone = sample(logits[one], temperature[one], top_k[one], top_p[one], seeds[one], steps[one] + step)
    assert alone.item() == ids[4].item(), "a row depends on its batch"
plain = sample(logits, temperature, top_k * 0, top_p * 0 + 1, seeds, steps, False, True)
assert torch.equal(plain, sample(logits, temperature, top_k * 0, top_p * 0 + 1, seeds, steps))
few = torch.tensor([[0.0, 1.0, 2.0]]).expand(1000, 3).contiguous()
ones = torch.ones(1000)
ids = sample(few, ones, ones.int() * 0, ones, torch.arange(1000), torch.zeros(1000, dtype=torch.int64), False, True)
shares = torch.bincount(ids, minlength=3) / 1000
assert (shares - few[0].softmax(-1)).abs().max() < 0.05, shares
"""


STEP = """
from vila_core.config import DecoderConfig
from vila_core.language.decoder import Decoder
from vila_core.language.fused_step import CacheView, FusedStep
from vila_core.ops.attention import cache_address

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
caches = decoder.new_cache(2, 80), exact.new_cache(2, 80)
for model, cache in zip((decoder, exact), caches, strict=True):
    model(prompt.to(cache.keys.dtype), cache=cache, lengths=lengths)
view = CacheView(
    torch.tensor(cache_address(caches[0].keys, caches[0].values)), torch.zeros(2, dtype=torch.int32)
)
step = FusedStep(decoder)
for number in range(2):
    x, positions = randn(2, 64), lengths + number
    expected = exact.decode_step(x.double()[:, None], positions[:, None], caches[1].up_to(71 + number))[:, 0]
    check(step(x, positions, view), expected, 3e-3, f"step {number}")
"""


@pytest.mark.parametrize(
    "what",
    [NORM, SWIGLU, LINEAR, ROTARY, ATTENTION, SAMPLING, STEP],
    ids=["norm", "swiglu", "linear", "rotary", "attention", "sampling", "step"],
)
def test_an_operator_follows_the_oracle(what: str) -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHECK + what], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2500:]
