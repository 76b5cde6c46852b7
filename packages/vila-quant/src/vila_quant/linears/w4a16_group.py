"""Four-bit linears of the same input as one weight, for the fused decode step on an NVIDIA GPU.

M tokens, N outputs, K inputs
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vila_core.language.linear_groups import LinearGroup, UnfinishedNorm
from vila_core.ops.attention import SplitHeads
from vila_quant.kernels.cuda.w4a16 import W4Weight, matmul, normed, swiglu
from vila_quant.kernels.cuda.w4a16.decode import merges_heads
from vila_quant.kernels.cuda.w4a16.layout import UNIT_INPUTS, UNIT_OUTPUTS

if TYPE_CHECKING:
    from vila_quant.linears.groupwise_linear import GroupwiseLinear


@dataclass(frozen=True)
class W4A16Group:
    """Packed weights one after the other in one tensor, of which those of the linears are parts."""

    weight: W4Weight
    bias: Tensor | None

    @property
    def first_read(self) -> Tensor:
        return self.weight.packed

    @classmethod
    def of(cls, linears: Sequence[GroupwiseLinear]) -> W4A16Group | None:
        """Join the weights of `linears`, which then share the memory; None if their shapes do not allow it."""
        shapes = [linear.shape for linear in linears]
        if len({(shape.inputs, shape.group_size) for shape in shapes}) > 1:
            return None
        if any(shape.outputs % UNIT_OUTPUTS for shape in shapes[:-1]):
            return None
        packed = linears[0].packed[0] if len(linears) == 1 else torch.cat([linear.packed[0] for linear in linears])
        if len(linears) > 1:
            blocks = [len(linear.packed[0]) for linear in linears]
            for linear, part in zip(linears, packed.split(blocks), strict=True):
                linear.packed = (part,)
            # Kernels may read a weight before the kernel ahead of them has ended.
            torch.cuda.synchronize(packed.device)
        outputs = sum(shape.outputs for shape in shapes)
        weight = W4Weight(packed, outputs, shapes[0].inputs, shapes[0].group_size)
        return cls(weight, _joined_bias(linears))

    def __call__(self, x: Tensor, following: LinearGroup | None = None) -> Tensor:
        """`x [M, K]` -> `[M, ΣN]`."""
        return matmul(x, self.weight, self.bias, following=_first_read(following))

    def swiglu(self, x: Tensor, following: LinearGroup | None = None) -> Tensor:
        """`x [M, K]` -> `silu(first) · second`, `[M, N]`."""
        from vila_core.ops.swiglu import swiglu as swiglu_of_product

        if self.bias is None and self.weight.outputs % (2 * UNIT_OUTPUTS) == 0:
            return swiglu(x, self.weight, following=_first_read(following))
        return swiglu_of_product(self(x, following))

    def fuses_norms(self) -> bool:
        """Return whether inputs and outputs are whole units; the linears that add to the residual have no bias."""
        return self.weight.inputs % UNIT_INPUTS == 0 and self.weight.outputs % UNIT_OUTPUTS == 0

    def merges_heads(self, head_dim: int) -> bool:
        """Return whether `add` takes an attention of heads of `head_dim` in parts."""
        return merges_heads(head_dim, self.weight.group_size)

    def add(
        self,
        x: Tensor | SplitHeads,
        total: Tensor,
        weight: Tensor,
        scale: float,
        eps: float,
        following: LinearGroup | None,
    ) -> UnfinishedNorm:
        """Return the residual `total + x Wᵀ` and its norm."""
        assert self.bias is None
        given = (self.weight.packed, total, weight, self.weight.group_size, _first_read(following))
        if isinstance(x, Tensor):
            h, scaled, squares = normed.add(x, *given)
        else:
            h, scaled, squares = normed.add(x.parts, *given, x.logs, x.position, x.head_dim, x.window)
        return UnfinishedNorm(h, scaled, squares, scale, eps)

    def finish(self, x: UnfinishedNorm, following: LinearGroup | None, *, swiglu: bool = False) -> Tensor:
        """Return what the group, or its `swiglu`, makes of the finished norm."""
        weight = self.weight
        outputs = weight.outputs // 2 if swiglu else weight.outputs
        return normed.matmul(
            x.scaled, x.squares, x.scale, x.eps, weight.packed, self.bias, outputs, weight.group_size,
            _first_read(following), swiglu,
        )  # fmt: skip


def _first_read(following: LinearGroup | None) -> Tensor | None:
    return None if following is None else following.first_read


def _joined_bias(linears: Sequence[GroupwiseLinear]) -> Tensor | None:
    if all(linear.bias is None for linear in linears):
        return None
    known = next(linear.bias for linear in linears if linear.bias is not None)
    return torch.cat(
        [known.new_zeros(linear.shape.outputs) if linear.bias is None else linear.bias.detach() for linear in linears]
    )
