"""The search for the range of each group: both ends may move inwards, independently; the pair with the least loss wins.

N outputs, K inputs, g group size, G = K / g groups

A smaller range rounds more finely but clips more. The loss of a group is Σ_k D_k (Q(w_k) - w_k)², with the costs D
of `rounding.py`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vila_quant.packing.groupwise import SMALLEST_RANGE

SHRINKS = tuple(step / 20 for step in range(11))
"""Fractions by which an end moves inwards: 0, 5, … 50 %."""
WEIGHTS_AT_ONCE = {"cuda": 2**25, "cpu": 2**18}
"""Weights searched together: limits memory on a GPU, fits the cache on a CPU."""


@torch.no_grad()
def search_ranges(
    weight: Tensor, costs: Tensor, group_size: int, bits: int, shrinks: Sequence[float] = SHRINKS
) -> tuple[Tensor, Tensor]:
    """Return the scales and zeros of every group, `[N, G]` fp32; fp16 can represent the scales.

    First both ends move together, then only the upper, then only the lower; the first of equally good ones wins.

    Args:
        weight: `[N, K]` fp32.
        costs: cost of an error in each column, `[K]` fp32.
        group_size: divides K.
        bits: bits per weight.
        shrinks: fractions by which an end moves, 0 first.
    """
    found = [
        _search_rows(rows.unflatten(1, (-1, group_size)), costs.view(-1, group_size), 2**bits - 1, shrinks)
        for rows in row_chunks(weight)
    ]
    return torch.cat([scales for scales, _ in found]), torch.cat([zeros for _, zeros in found])


def row_chunks(weight: Tensor) -> Sequence[Tensor]:
    """Split `weight [N, K]` into chunks of rows to search together."""
    return weight.split(max(1, WEIGHTS_AT_ONCE.get(weight.device.type, WEIGHTS_AT_ONCE["cpu"]) // weight.shape[1]))


def _search_rows(weight: Tensor, costs: Tensor, largest: int, shrinks: Sequence[float]) -> tuple[Tensor, Tensor]:
    """`weight [N, G, g]`, `costs [G, g]` -> scales and zeros `[N, G]`."""
    highest, lowest = weight.amax(-1, keepdim=True), weight.amin(-1, keepdim=True)  # [N, G, 1]
    least = torch.full_like(highest, torch.inf)
    best_scales, best_zeros = torch.ones_like(highest), torch.zeros_like(highest)
    upper, lower = torch.zeros_like(highest), torch.zeros_like(highest)  # the best shares so far

    def attempt(cut_upper: Tensor | float, cut_lower: Tensor | float) -> None:
        nonlocal least, best_scales, best_zeros, upper, lower
        low = lowest * (1 - cut_lower)
        scales = ((highest * (1 - cut_upper) - low).clamp(min=SMALLEST_RANGE) / largest).half().float()
        zeros = (-torch.round(low / scales)).clamp(0, largest)
        change = torch.round(weight / scales).add_(zeros).clamp_(0, largest).sub_(zeros).mul_(scales).sub_(weight)
        loss = torch.einsum("ngi,gi->ng", change.square_(), costs)[..., None]
        better = loss < least
        least, best_scales, best_zeros = (
            torch.where(better, new, old) for new, old in ((loss, least), (scales, best_scales), (zeros, best_zeros))
        )
        upper = torch.where(better, cut_upper, upper)
        lower = torch.where(better, cut_lower, lower)

    for shrink in shrinks:
        attempt(shrink, shrink)
    together = lower
    for shrink in shrinks:
        attempt(shrink, together)
    found = upper
    for shrink in shrinks:
        attempt(found, shrink)
    return best_scales.squeeze(-1), best_zeros.squeeze(-1)
