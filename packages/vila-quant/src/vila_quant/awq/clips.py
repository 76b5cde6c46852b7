"""The search for clipped ranges: a smaller range rounds more finely but clips more; each group takes the best one.

N outputs, K inputs, g group size, G = K / g groups, T tokens. Source: `auto_clip.py` of llm-awq.

The error of a group over the tokens is a quadratic form of the change d = Q(clamp(w)) - w, so tokens are read once:

    mean_t (d · x_t)² = dᵀ H d,    H = mean_t x_t x_tᵀ   [g, g]
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vila_quant.awq.scales import FakeQuantize

SAMPLED_TOKENS = 512
REFERENCE_SHRINKS = tuple(step / 20 for step in range(10))
"""Fractions of the range to clip: 0, 5, … 45 %."""
ROWS_AT_ONCE = 1024
"""Output rows searched together; bounds the memory."""


def sample_tokens(x: Tensor) -> Tensor:
    """Return about `SAMPLED_TOKENS` of the tokens, evenly spaced: `[…, K]` -> `[T, K]`."""
    tokens = x.reshape(-1, x.shape[-1])
    return tokens[:: max(1, len(tokens) // SAMPLED_TOKENS)]


@torch.no_grad()
def search_clips(
    weight: Tensor,
    x: Tensor,
    group_size: int,
    fake_quantize: FakeQuantize,
    shrinks: Sequence[float] = REFERENCE_SHRINKS,
) -> Tensor:
    """Return the best limit for the magnitudes of each row and group, `[N, G, 1]` in the weight's dtype.

    Args:
        weight: `[N, K]`, scales applied.
        x: input of the linear, scales applied, `[T, K]`.
        group_size: divides K.
        fake_quantize: quantizes as the weight will be; called with whole rows.
        shrinks: fractions of the range to clip, in order; the first of equally good ones wins.
    """
    groups = x.reshape(len(x), -1, group_size).float()  # [T, G, g]
    moments = torch.einsum("tgi,tgj->gij", groups, groups) / len(x)  # H of each group
    return torch.cat([_search_rows(rows, moments, fake_quantize, shrinks) for rows in weight.split(ROWS_AT_ONCE)])


def _search_rows(weight: Tensor, moments: Tensor, fake_quantize: FakeQuantize, shrinks: Sequence[float]) -> Tensor:
    rows, columns = weight.shape
    groups = weight.view(rows, len(moments), -1)  # [N, G, g]
    largest = groups.abs().amax(-1, keepdim=True)  # [N, G, 1]
    best, least = largest.clone(), torch.full_like(largest, torch.inf, dtype=torch.float32)
    for shrink in shrinks:
        limit = largest * (1 - shrink)
        clipped = torch.clamp(groups, -limit, limit).view(rows, columns)
        change = (fake_quantize(clipped) - weight).view_as(groups).float()
        error = torch.einsum("ngi,gij,ngj->ng", change, moments, change)[..., None]
        better = error < least
        least = torch.where(better, error, least)
        best = torch.where(better, limit, best)
    return best


@torch.no_grad()
def apply_clips(weight: Tensor, limits: Tensor) -> None:
    """Clamp `weight [N, K]` in place to `limits [N, G, 1]`."""
    groups = weight.view(weight.shape[0], limits.shape[1], -1)
    groups.copy_(torch.clamp(groups, -limits.to(weight.dtype), limits.to(weight.dtype)))
