"""Group-wise asymmetric integers: each row of a weight is split into groups that share a scale and a zero point.

N outputs, K inputs, g group size, G = K / g groups

    w ≈ (q - zero) · scale,    q in 0 … 2^bits - 1
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vila_core.errors import ConfigError

SMALLEST_RANGE = 1e-5
"""Lower bound for the range of a group, to avoid division by zero (as in llm-awq)."""


@dataclass(frozen=True)
class GroupwiseWeight:
    """A quantized weight: `q [N, K]` uint8, `scales [N, G]` and integer `zeros [N, G]` in the weight's dtype."""

    q: Tensor
    scales: Tensor
    zeros: Tensor
    bits: int

    @property
    def group_size(self) -> int:
        return self.q.shape[1] // self.scales.shape[1]

    def dequantize(self) -> Tensor:
        """Return `(q - zero) · scale`, `[N, K]` in the dtype of the scales."""
        rows, columns = self.q.shape
        q = self.q.view(rows, -1, self.group_size).to(self.scales.dtype)
        return ((q - self.zeros[..., None]) * self.scales[..., None]).view(rows, columns)


def quantize(weight: Tensor, bits: int, group_size: int) -> GroupwiseWeight:
    """Quantize `weight [N, K]` group by group; the range of a group maps to the full range of integers.

        scale = (max - min) / (2^bits - 1),   zero = clamp(round(-min / scale)),   q = clamp(round(w / scale) + zero)

    Computed in the weight's dtype, and equal bit for bit to `pseudo_quantize_tensor` of llm-awq.

    Args:
        weight: `[N, K]`, any floating dtype.
        bits: 2 to 8.
        group_size: divides K; -1 is one group per row.

    Raises:
        ConfigError: invalid bits or group size, or a weight is not finite.
    """
    rows, columns = weight.shape
    size = columns if group_size == -1 else group_size
    check_group_size(columns, size)
    if not 2 <= bits <= 8:
        raise ConfigError(f"Got {bits} bits. Expected 2 to 8.")
    groups = weight.reshape(rows, -1, size)  # [N, G, g]
    highest, lowest = groups.amax(-1, keepdim=True), groups.amin(-1, keepdim=True)
    if not bool(torch.isfinite(highest - lowest).all()):
        raise ConfigError(
            "The weight holds values that are not finite. The checkpoint is damaged, or its dtype overflowed."
        )
    largest = 2**bits - 1
    scales = (highest - lowest).clamp(min=SMALLEST_RANGE) / largest
    zeros = (-torch.round(lowest / scales)).clamp(0, largest)
    q = torch.clamp(torch.round(groups / scales) + zeros, 0, largest)
    return GroupwiseWeight(q.to(torch.uint8).view(rows, columns), scales.squeeze(-1), zeros.squeeze(-1), bits)


def fake_quantize(weight: Tensor, bits: int, group_size: int) -> Tensor:
    """Return `quantize(…).dequantize()` of `weight [N, K]`, in its own dtype."""
    return quantize(weight, bits, group_size).dequantize()


def check_group_size(columns: int, group_size: int) -> None:
    """Raise `ConfigError`, suggesting sizes that fit, unless `group_size` divides a layer's width."""
    if group_size > 0 and columns % group_size == 0:
        return
    fitting = [size for size in (128, 64, 32) if columns % size == 0]
    advice = f"Choose --group-size {' or '.join(map(str, fitting))}" if fitting else "Leave this layer out with --skip"
    raise ConfigError(f"Group size {group_size} does not divide a width of {columns}. {advice}.")
