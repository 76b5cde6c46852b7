"""Error-compensated rounding: later columns compensate the rounding error of earlier ones (GPTQ, arXiv:2210.17323).

N outputs, K inputs, g group size, G = K / g groups

The scales and zeros of groups are given. With H = mean_t x_t x_tᵀ = R Rᵀ, R upper triangular, and U = R / diag(R):

    ŵ_k = Q(w_k + Σ_{j<k} (w_j - ŵ_j) U_jk)

This equals GPTQ, written with errors of the original weights (LDLQ: Chee et al. 2023, arXiv:2307.13304, theorem 6), and
needs one Cholesky factor and no inverse. Columns are processed in blocks: one matrix product gives a block the
errors of all columns before it. Columns with large inputs go first, while many others can still compensate for
them; since the grid is fixed, any order is allowed.

The final loss is Σ_k D_k e_k², where e_k = ŵ_k - (the target of column k) and D = diag(R)²: D_k is the part of the k-th
input that the inputs after it do not predict. So D is the cost of a rounding error *after* compensation; the
searches for scales and ranges weight errors with it.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vila_quant.errors import QuantizationError
from vila_quant.kernels.registry import warn_fallback
from vila_quant.packing.groupwise import GroupwiseWeight

BLOCK = 128
"""Columns per block, whose errors are fed back one by one."""
DAMPING = 0.01
"""Added to the diagonal of H, as a fraction of its mean (as in GPTQ)."""
LARGEST_DAMPING = 1.0

RoundBlock = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""The signature of `round_block_torch`."""


@dataclass(frozen=True)
class Feedback:
    """Options of error compensation.

    Attributes:
        order: order of the columns, `[K]` int64.
        upper: U in that order, `[K, K]` fp32, unit upper triangular.
        costs: D in the weight's own order, `[K]` fp32.
    """

    order: Tensor
    upper: Tensor
    costs: Tensor

    def scaled(self, scales: Tensor) -> "Feedback":
        """Return the feedback for inputs x / s with `scales` s `[K]`, in the same order. Changes U in place."""
        ordered = scales[self.order]
        # H' = H / (s sᵀ) has R' = R / s (rows), so U' = U · s / s of its row.
        return Feedback(
            self.order, self.upper.div_(ordered[:, None]).mul_(ordered[None, :]), self.costs / scales.square()
        )


@torch.no_grad()
def feedback(moments: Tensor, name: str, damping: float = DAMPING) -> Feedback:
    """Factorize the second moments H `[K, K]` fp32 of a linear's inputs; columns with the largest inputs come first.

    If H is not positive definite in fp32, damping is raised tenfold, with a warning that names the linear.

    Raises:
        QuantizationError: H is not finite, or not positive definite even with the largest damping.
    """
    mean = moments.diagonal().mean()
    if not bool(torch.isfinite(mean)):
        raise QuantizationError(
            f"{name}: its inputs are not finite. Check the checkpoint, or quantize in another dtype."
        )
    order = moments.diagonal().argsort(descending=True, stable=True)
    # The factor of the matrix rotated by 180 degrees, rotated back, is upper triangular.
    turned = order.flip(0)
    while damping <= LARGEST_DAMPING:
        damped = moments[turned][:, turned]
        damped.diagonal().add_(torch.clamp(damping * mean, min=torch.finfo(torch.float32).tiny))
        factor, failed = torch.linalg.cholesky_ex(damped)
        del damped
        if not bool(failed):
            upper = factor.flip(0, 1)
            del factor
            diagonal = upper.diagonal().clone()
            costs = torch.empty_like(diagonal)
            costs[order] = diagonal.square()
            return Feedback(order, upper.div_(diagonal), costs)
        damping *= 10
        warnings.warn(
            f"{name}: the second moments of its inputs are not positive definite; damping raised to {damping:g}.",
            stacklevel=2,
        )
    raise QuantizationError(
        f"{name}: the second moments of its inputs cannot be factorized. Use more, or more varied, calibration data."
    )


@torch.no_grad()
def round_compensated(weight: Tensor, moments: Feedback, scales: Tensor, zeros: Tensor, bits: int) -> GroupwiseWeight:
    """Round `weight` to the grid of `scales` and `zeros`, column by column.

    Args:
        weight: `[N, K]` fp32.
        moments: feedback for the linear's inputs.
        scales: `[N, G]` fp32, positive.
        zeros: `[N, G]` fp32, integers.
        bits: bits per weight.
    """
    columns = weight.shape[1]
    group_size = columns // scales.shape[1]
    order, upper = moments.order, moments.upper
    q = torch.empty_like(weight, dtype=torch.uint8)
    errors = torch.empty_like(weight)  # in column order
    round_block = _rounding_kernel(weight.device)
    for start in range(0, columns, BLOCK):
        place = slice(start, min(start + BLOCK, columns))
        own, groups = order[place], order[place] // group_size
        block = weight[:, own]
        wanted = torch.addmm(block, errors[:, :start], upper[:start, place])
        q[:, own], errors[:, place] = round_block(
            block, wanted, upper[place, place], scales[:, groups], zeros[:, groups], 2**bits - 1
        )
    return GroupwiseWeight(q, scales, zeros, bits)


def round_block_torch(
    weight: Tensor, wanted: Tensor, upper: Tensor, scales: Tensor, zeros: Tensor, largest: int
) -> tuple[Tensor, Tensor]:
    """Round one block of columns: the reference for the Triton kernel.

    Args:
        weight: `[N, b]` fp32.
        wanted: `[N, b]`, the weight plus the errors of earlier blocks.
        upper: the diagonal block of U, `[b, b]`.
        scales: scale of each column's group, `[N, b]`.
        zeros: zero of each column's group, `[N, b]`.
        largest: the largest code.

    Returns:
        q `[N, b]` uint8, and the error w - ŵ `[N, b]`.
    """
    # Transposed, so that a column is contiguous.
    own, targets, steps, offsets = (part.T.contiguous() for part in (weight, wanted, scales, zeros))
    q, errors = torch.empty_like(own), torch.empty_like(own)
    for k in range(len(own)):
        target = torch.addmv(targets[k], errors[:k].T, upper[:k, k]) if k else targets[k]
        torch.clamp(torch.round(target / steps[k]) + offsets[k], 0, largest, out=q[k])
        torch.sub(own[k], (q[k] - offsets[k]) * steps[k], out=errors[k])
    return q.T.to(torch.uint8), errors.T


def _rounding_kernel(device: torch.device) -> RoundBlock:
    """Return the Triton kernel on a GPU; elsewhere, or with a warning if Triton is not installed, PyTorch."""
    if device.type != "cuda":
        return round_block_torch
    try:
        from vila_quant.kernels.cuda.rounding_triton import round_block
    except ImportError as error:
        warn_fallback("rounding-torch", "rounding-triton", str(error))
        return round_block_torch
    return round_block
