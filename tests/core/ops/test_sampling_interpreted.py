"""Choosing tokens and the codes of pictures, in the interpreter of Triton."""

import sys

import pytest
from tests.core.ops.oracles import run_checks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")

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


@pytest.mark.parametrize(
    "what",
    [
        pytest.param(SAMPLING, id="tokens"),
        pytest.param(CODES, id="codes"),
        pytest.param(DEPTH_STEPS, id="codes of a position"),
    ],
)
def test_sampling_follows_the_oracle(what: str) -> None:
    run_checks(what)
