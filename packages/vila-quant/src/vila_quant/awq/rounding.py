"""Error-compensated rounding: what rounding one column loses is made good in those after it (GPTQ, Frantar et al., arXiv:2210.17323).

N outputs, K inputs, g group size, G = K / g groups

The groups' scales and zeros are fixed beforehand. With H = mean_t x_t x_tᵀ = R Rᵀ for an upper triangular R, and U = R / diag(R):

    ŵ_k = Q(w_k + Σ_{j<k} (w_j - ŵ_j) U_jk)

This is GPTQ's result written with errors of the original weights (LDLQ: Chee et al. 2023, arXiv:2307.13304, theorem 6), which takes
one Cholesky factor and no inverse. Columns go in blocks: one matrix product brings a block what all columns before it left. Columns with
large inputs go first, while many others can still make good for them; since the grid is fixed, their order is free.

What is lost in the end is Σ_k D_k e_k², with e_k = ŵ_k - (what was wanted of column k) and D = diag(R)²: D_k is what is left of the
k-th input once the inputs after it are known. So D says how much a rounding error in a column costs *after* compensation, which
is what the searches for scales and ranges weigh errors with.
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
"""Columns whose errors are fed back one by one."""
DAMPING = 0.01
"""Added to the diagonal of H, as a share of its mean (as in GPTQ)."""
LARGEST_DAMPING = 1.0

RoundBlock = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""The signature of `round_block_torch`."""


@dataclass(frozen=True)
class Feedback:
    """How errors are made good.

    Attributes:
        order: of the columns `[K]` int64.
        upper: U in that order, `[K, K]` fp32, unit upper triangular.
        costs: D in the order of the weight, `[K]` fp32.
    """

    order: Tensor
    upper: Tensor
    costs: Tensor

    def scaled(self, scales: Tensor) -> "Feedback":
        """Return the feedback for inputs x / s, `scales` s `[K]`, in the same order; U is changed in place, as it may be large."""
        ordered = scales[self.order]
        # H' = H / (s sᵀ) has R' = R / s (rows), so U' = U · s / s of its row.
        return Feedback(
            self.order, self.upper.div_(ordered[:, None]).mul_(ordered[None, :]), self.costs / scales.square()
        )


@torch.no_grad()
def feedback(moments: Tensor, name: str, damping: float = DAMPING) -> Feedback:
    """Factorise the second moments H `[K, K]` fp32 of a linear's inputs; columns with the largest inputs come first.

    Where H is not positive definite in fp32, ten times the damping is taken, with a warning that says `name`.

    Raises:
        QuantizationError: H is not finite, or not positive definite with the largest damping either.
    """
    mean = moments.diagonal().mean()
    if not bool(torch.isfinite(mean)):
        raise QuantizationError(
            f"{name}: its inputs are not finite. Check the checkpoint, or quantize in another dtype."
        )
    order = moments.diagonal().argsort(descending=True, stable=True)
    # The factor of the matrix turned by 180 degrees, turned back, is upper triangular.
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
        f"{name}: the second moments of its inputs cannot be factorised. Give more, or more varied, calibration."
    )


@torch.no_grad()
def round_compensated(weight: Tensor, moments: Feedback, scales: Tensor, zeros: Tensor, bits: int) -> GroupwiseWeight:
    """Round `weight` to the grid of `scales` and `zeros`, column after column.

    Args:
        weight: `[N, K]` fp32.
        moments: of the linear's inputs.
        scales: `[N, G]` fp32, positive.
        zeros: `[N, G]` fp32, whole numbers.
        bits: of the grid.
    """
    columns = weight.shape[1]
    group_size = columns // scales.shape[1]
    order, upper = moments.order, moments.upper
    q = torch.empty_like(weight, dtype=torch.uint8)
    errors = torch.empty_like(weight)  # in the order of the columns
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
    """Round one block of columns. This is the oracle of the Triton kernel.

    Args:
        weight: `[N, b]` fp32.
        wanted: `[N, b]`, the weight and what the blocks before it left.
        upper: the block of U on the diagonal, `[b, b]`.
        scales: `[N, b]`, of each column's group.
        zeros: `[N, b]`, of each column's group.
        largest: integer.

    Returns:
        q `[N, b]` uint8, and the error w - ŵ `[N, b]`.
    """
    # Turned, so that a column is contiguous.
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
