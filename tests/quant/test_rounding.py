"""Error-compensated rounding: same integers as GPTQ's formulation; the Triton kernel matches its reference."""

import pytest
import torch
from tests.interpreted_kernels import run_interpreted
from torch import Tensor

from vila_quant.awq.rounding import feedback, round_compensated
from vila_quant.errors import QuantizationError
from vila_quant.packing.groupwise import quantize


def problem(rows: int, columns: int, group_size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return a weight, second moments of correlated inputs, and a grid."""
    generator = torch.Generator().manual_seed(rows + columns)
    mixing = torch.randn(columns, columns, generator=generator) * 0.3 + torch.eye(columns)
    x = torch.randn(4 * columns, columns, generator=generator) @ mixing
    weight = torch.randn(rows, columns, generator=generator)
    grid = quantize(weight, 4, group_size)
    return weight, x.T @ x / len(x), grid.scales, grid.zeros


def gptq(weight: Tensor, moments: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """GPTQ as in the paper, large inputs first: Cholesky factor of the inverse, updated weights; returns q `[N, K]`."""
    columns = weight.shape[1]
    order = moments.diagonal().argsort(descending=True, stable=True)
    weight, moments = weight[:, order], moments[order][:, order]
    damped = moments.double() + 0.01 * moments.double().diagonal().mean() * torch.eye(columns, dtype=torch.float64)
    upper = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    left, q = weight.double(), torch.empty_like(weight)
    for k in range(columns):
        group = int(order[k]) * scales.shape[1] // columns
        scale, zero = scales[:, group].double(), zeros[:, group].double()
        q[:, k] = (torch.round(left[:, k] / scale) + zero).clamp(0, 15)
        error = (left[:, k] - (q[:, k] - zero) * scale) / upper[k, k]
        left = left - error[:, None] * torch.where(torch.arange(columns) >= k, upper[k], 0.0)
    restored = torch.empty_like(q)
    restored[:, order] = q
    return restored


@pytest.mark.parametrize(("rows", "columns", "group_size"), [(8, 96, 32), (24, 128, 128), (5, 384, 64)])
def test_the_integers_are_those_of_gptq(rows: int, columns: int, group_size: int) -> None:
    weight, moments, scales, zeros = problem(rows, columns, group_size)
    rounded = round_compensated(weight, feedback(moments, "test"), scales, zeros, 4)
    differ = (rounded.q != gptq(weight, moments, scales, zeros)).float().mean()
    assert differ < 0.005  # a value halfway between two integers may go either way

    nearest = quantize(weight, 4, group_size).dequantize() - weight
    change = rounded.dequantize() - weight
    lost = torch.einsum("nk,kl,nl->", change, moments, change)
    assert lost < 0.7 * torch.einsum("nk,kl,nl->", nearest, moments, nearest)


def test_moments_without_full_rank_are_damped_with_a_warning() -> None:
    negative = torch.diag(torch.tensor([1.0, 1.0, -0.02, 1.0]))
    with pytest.warns(UserWarning, match=r"layer 3: .* damping raised to 0\.1"):
        factors = feedback(negative, "layer 3")
    assert torch.equal(factors.upper, torch.eye(4))


def test_moments_that_are_no_moments_are_refused() -> None:
    with pytest.raises(QuantizationError, match="layer 3: its inputs are not finite"):
        feedback(torch.full((4, 4), torch.nan), "layer 3")
    with pytest.warns(UserWarning, match="layer 3"), pytest.raises(QuantizationError, match="cannot be factorized"):
        feedback(torch.diag(torch.tensor([1.0, 1.0, -5.0, 4.0])), "layer 3")


def test_inputs_that_are_all_zero_round_to_nearest() -> None:
    weight, _, scales, zeros = problem(8, 96, 32)
    rounded = round_compensated(weight, feedback(torch.zeros(96, 96), "test"), scales, zeros, 4)
    assert torch.equal(rounded.q, quantize(weight, 4, 32).q)


INTERPRETED = """
import torch
from vila_quant.awq.rounding import round_block_torch
from vila_quant.kernels.cuda.rounding_triton import round_block
generator = torch.Generator().manual_seed(0)
for rows, columns in ((16, 32), (19, 24)):
    weight = torch.randn(rows, columns, generator=generator)
    wanted = weight + 0.1 * torch.randn(rows, columns, generator=generator)
    upper = torch.randn(columns, columns, generator=generator).triu(1) * 0.2 + torch.eye(columns)
    scales = torch.rand(rows, columns, generator=generator) * 0.1 + 0.2
    zeros = torch.randint(0, 16, (rows, columns), generator=generator).float()
    q, errors = round_block(weight, wanted, upper, scales, zeros, 15)
    expected_q, expected_errors = round_block_torch(weight, wanted, upper, scales, zeros, 15)
    assert torch.equal(q, expected_q), (q != expected_q).sum()
    torch.testing.assert_close(errors, expected_errors)
"""


def test_the_triton_kernel_follows_its_oracle() -> None:
    run_interpreted(INTERPRETED)


@pytest.mark.cuda
def test_on_a_gpu_the_result_is_that_of_the_cpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    weight, moments, scales, zeros = problem(72, 384, 128)
    expected = round_compensated(weight, feedback(moments, "test"), scales, zeros, 4)
    actual = round_compensated(weight.cuda(), feedback(moments.cuda(), "test"), scales.cuda(), zeros.cuda(), 4)
    assert (actual.q.cpu() != expected.q).float().mean() < 0.005
