"""The W4A16 product on an NVIDIA GPU, against the oracle in fp64."""

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from vila_core.errors import ConfigError
from vila_quant.kernels.cuda.w4a16 import W4Weight, matmul, normed, reference, swiglu
from vila_quant.kernels.cuda.w4a16.candidates import candidates
from vila_quant.kernels.cuda.w4a16.decode import DecodeConfig
from vila_quant.kernels.cuda.w4a16.dispatch import run, runs_on
from vila_quant.kernels.cuda.w4a16.timing import GpuTimer

RandomWeight = Callable[..., W4Weight]

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")]

HALF, BRAIN = torch.float16, torch.bfloat16

PRODUCTS = [
    ((4608, 3584, 128), HALF, (1, 8, 16, 33, 100, 257, 4100)),
    ((4608, 3584, 128), BRAIN, (1, 9, 64, 200, 1025)),
    ((72, 18944, 128), HALF, (2, 9, 17, 1025)),
    ((33, 640, 64), HALF, (1, 17, 257)),
    ((33, 640, 64), BRAIN, (5, 16, 100, 1025)),
    ((100, 672, 32), HALF, (5, 16, 64, 1025)),
    ((100, 672, 32), BRAIN, (1, 33, 257)),
    ((40, 384, 128), BRAIN, (2, 4100)),
]
"""Shape and group size, dtype, tokens: each kernel with each dtype and group size, ragged or not. Each pair would take
minutes to compile."""

CANDIDATES = (1, 13, 30, 61, 120, 700)
CANDIDATES_SHAPE = (100, 3584)

TOLERANCE = {HALF: 5e-4, BRAIN: 4e-3}


def assert_close(y: torch.Tensor, expected: torch.Tensor, name: str) -> None:
    error = ((y.double() - expected).norm() / expected.norm()).item()
    largest = ((y.double() - expected).abs().max() / expected.abs().max()).item()
    tolerance = TOLERANCE[y.dtype]
    assert error < tolerance, f"{name}: relative error {error:.2e}"
    assert largest < 4 * tolerance, f"{name}: largest error {largest:.2e} of the largest result"


@pytest.mark.parametrize(("shape", "dtype", "counts"), PRODUCTS, ids=str)
def test_any_number_of_tokens(
    shape: tuple[int, int, int], dtype: torch.dtype, counts: tuple[int, ...], random_weight: RandomWeight
) -> None:
    weight = random_weight(*shape, "cuda")
    outputs, inputs, _ = shape
    bias = torch.randn(outputs, device="cuda", dtype=dtype)
    for number, tokens in enumerate(counts):
        x = torch.randn(tokens, inputs, device="cuda", dtype=dtype)
        with_bias = bias if number % 2 == (dtype is HALF) else None
        assert_close(matmul(x, weight, with_bias), reference.matmul(x, weight, with_bias), f"{tokens} tokens")
    assert matmul(torch.randn(0, inputs, device="cuda", dtype=dtype), weight, bias).shape == (0, outputs)


@pytest.fixture(scope="module")
def compiled_candidates() -> None:
    """The candidates are compiled in several processes."""
    GpuTimer(torch.device("cuda", torch.cuda.current_device())).prepare([CANDIDATES_SHAPE], CANDIDATES)


@pytest.mark.usefixtures("compiled_candidates")
@pytest.mark.parametrize("tokens", CANDIDATES)
def test_every_candidate_of_tuning_writes_every_output(tokens: int, random_weight: RandomWeight) -> None:
    outputs, inputs = CANDIDATES_SHAPE
    weight = random_weight(outputs, inputs, 128, "cuda")
    x = torch.randn(tokens, inputs, device="cuda", dtype=HALF)
    expected = reference.matmul(x, weight)
    for config in [config for config in candidates(tokens) if runs_on(config, x.device)]:
        y = torch.full((tokens, outputs), torch.nan, device="cuda", dtype=HALF)
        run(config, x, weight.packed, None, y, 128)
        assert_close(y, expected, str(config))


def test_rows_apart_and_unaligned(random_weight: RandomWeight) -> None:
    weight = random_weight(96, 256, 128, "cuda")
    wide = torch.randn(4, 3, 300, device="cuda", dtype=torch.float16)
    for x in (wide[..., :256], wide[..., 1:257], wide.transpose(0, 1)[..., 8:264]):
        expected = reference.matmul(x.reshape(-1, 256), weight).view(*x.shape[:-1], 96)
        assert_close(matmul(x, weight), expected, str(x.stride()))


@pytest.mark.parametrize("tokens", [1, 16, 64, 300])
def test_a_cuda_graph_of_dependent_products_is_the_same_every_time(tokens: int, random_weight: RandomWeight) -> None:
    weights = [random_weight(1024, 1024, 128, "cuda") for _ in range(8)]
    x = torch.randn(tokens, 1024, device="cuda", dtype=torch.float16)

    def chain() -> torch.Tensor:
        y = x
        for weight, following in zip(weights, [*weights[1:], weights[0]], strict=True):
            y = matmul(y, weight, following=following.packed)
        return y

    expected = x.double()
    for weight in weights:
        expected = reference.matmul(expected, weight).half().double()
    eager = chain()
    stream = torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        chain()
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            captured = chain()
    for _ in range(50):
        captured.fill_(torch.nan)
        graph.replay()
        assert torch.equal(captured, eager)
    error = ((eager.double() - expected).norm() / expected.norm()).item()
    assert error < 3e-3, f"{error:.2e}"


def test_under_compile(random_weight: RandomWeight) -> None:
    weight = random_weight(64, 256, 128, "cuda")
    bias = torch.randn(64, device="cuda", dtype=torch.float16)
    x = torch.randn(3, 256, device="cuda", dtype=torch.float16)
    compiled = torch.compile(lambda x: torch.relu(matmul(x * 2, weight, bias)), fullgraph=True)
    torch.testing.assert_close(compiled(x), torch.relu(matmul(x * 2, weight, bias)))


def test_misfits_are_refused(random_weight: RandomWeight) -> None:
    weight: W4Weight = random_weight(64, 256, 128, "cuda")
    with pytest.raises(ConfigError, match="fp16 or bf16"):
        matmul(torch.randn(1, 256, device="cuda"), weight)
    with pytest.raises(ConfigError, match="256 inputs"):
        matmul(torch.randn(1, 128, device="cuda").half(), weight)


@pytest.mark.parametrize(
    ("shape", "dtype", "counts"),
    [
        ((18944, 3584, 128), HALF, (1, 8, 16, 300)),
        ((18944, 3584, 128), BRAIN, (2, 9, 64)),
        ((64, 640, 64), HALF, (2, 9, 17)),
        ((64, 640, 64), BRAIN, (1, 16)),
        ((11008, 2048, 32), HALF, (1, 9)),
        ((11008, 2048, 32), BRAIN, (2, 16, 300)),
    ],
    ids=str,
)
def test_swiglu_of_any_number_of_tokens(
    shape: tuple[int, int, int], dtype: torch.dtype, counts: tuple[int, ...], random_weight: RandomWeight
) -> None:
    outputs, inputs, group_size = shape
    weight = random_weight(2 * outputs, inputs, group_size, "cuda")
    for tokens in counts:
        x = 10 * torch.randn(tokens, inputs, device="cuda", dtype=dtype)
        gate, up = reference.matmul(x, weight).chunk(2, dim=-1)
        y = swiglu(x, weight, following=weight.packed)
        error = ((y.double() - F.silu(gate) * up).norm() / (F.silu(gate) * up).norm()).item()
        assert error < 3 * TOLERANCE[dtype], f"{tokens} tokens: relative error {error:.2e}"


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_norms_between_linears(dtype: torch.dtype, random_weight: RandomWeight) -> None:
    first, second = random_weight(3584, 18944, 128, "cuda"), random_weight(4608, 3584, 128, "cuda")
    x = torch.randn(1, 18944, device="cuda", dtype=dtype)
    residual = torch.randn(1, 3584, device="cuda", dtype=dtype)
    weight = torch.rand(3584, device="cuda", dtype=dtype)
    bias = torch.randn(4608, device="cuda", dtype=dtype)
    h, scaled, squares = normed.add(x, first.packed, residual, weight, 128, second.packed)
    total = residual.double() + reference.matmul(x, first)
    assert_close(h, total, "residual")
    norm = F.rms_norm(total, (3584,), 2 * weight.double(), 1e-6)
    y = normed.matmul(scaled, squares, 2.0, 1e-6, second.packed, bias, 4608, 128, None)
    error = ((y.double() - (expected := reference.matmul(norm, second, bias))).norm() / expected.norm()).item()
    assert error < 3 * TOLERANCE[dtype], f"relative error {error:.2e}"
    gate, up = reference.matmul(norm, second).chunk(2, dim=-1)
    expected = F.silu(gate) * up
    y = normed.matmul(scaled, squares, 2.0, 1e-6, second.packed, None, 2304, 128, None, True)
    error = ((y.double() - expected).norm() / expected.norm()).item()
    assert error < 6 * TOLERANCE[dtype], f"relative error {error:.2e}"


def test_tuning_times_products_and_chains() -> None:
    timer = GpuTimer(torch.device("cuda", torch.cuda.current_device()))
    shapes = [(96, 256), (256, 96)]
    for tokens in (1, 40, 300):
        took = timer.product(tokens, shapes[1], timer.chosen(tokens, shapes[1]))
        assert took is not None
        assert 0 < took < 1
    config = timer.chosen(1, shapes[0])
    assert isinstance(config, DecodeConfig)
    assert 0 < timer.chain(1, shapes, [config, config]) < 1
