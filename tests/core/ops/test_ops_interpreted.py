"""Norm, activation, linears, rotary positions, exchange and a whole step, in the interpreter of Triton."""

import sys

import pytest
from tests.core.ops.oracles import run_checks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")

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


@pytest.mark.parametrize(
    "what",
    [
        pytest.param(NORM, id="norm"),
        pytest.param(SWIGLU, id="swiglu"),
        pytest.param(LINEAR, id="linear"),
        pytest.param(ROTARY, id="rotary"),
        pytest.param(STEP, id="step"),
        pytest.param(EXCHANGE, id="exchange"),
    ],
)
def test_an_operator_follows_the_oracle(what: str) -> None:
    run_checks(what)
