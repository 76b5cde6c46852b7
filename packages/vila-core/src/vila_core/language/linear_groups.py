"""Linears that read the same input, run together: what a fused decode step is made of.

M tokens, N outputs, K inputs
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from vila_core.ops.attention import SplitHeads


class LinearGroup(Protocol):
    """Linears of the same input."""

    @property
    def first_read(self) -> Tensor | None:
        """The tensor that the group reads first, for a kernel ahead of it to prefetch."""
        ...

    def __call__(self, x: Tensor, following: LinearGroup | None = None) -> Tensor:
        """`x [M, K]` -> their outputs side by side, `[M, ΣN]`. `following` runs next, so its weights may be prefetched.

        Results must not be kept for longer than until the group is called again.
        """
        ...

    def swiglu(self, x: Tensor, following: LinearGroup | None = None) -> Tensor:
        """`x [M, K]` -> `silu(first) · second`, `[M, N]`, for a group of two."""
        ...


@dataclass(frozen=True)
class UnfinishedNorm:
    """One token's residual h `[1, D]` and the norm of it, of which one factor is still to be applied.

    `rms_norm(h) = scaled · scale / sqrt(mean(h²) + eps)`, with the sum of h² in parts.
    """

    total: Tensor
    scaled: Tensor
    squares: Tensor
    scale: float
    eps: float


@runtime_checkable
class NormFusingGroup(LinearGroup, Protocol):
    """Linears that do the norms between them, for one token."""

    def fuses_norms(self) -> bool:
        """Return whether the shapes allow it."""
        ...

    def merges_heads(self, head_dim: int) -> bool:
        """Return whether `add` takes an attention of heads of `head_dim` in parts."""
        ...

    def add(
        self,
        x: Tensor | SplitHeads,
        total: Tensor,
        weight: Tensor,
        scale: float,
        eps: float,
        following: LinearGroup | None,
    ) -> UnfinishedNorm:
        """Return the residual `total + x Wᵀ` and its norm; `weight` is the norm's, divided by `scale`.

        `total` was computed at least two kernels before.
        """
        ...

    def finish(self, x: UnfinishedNorm, following: LinearGroup | None, *, swiglu: bool = False) -> Tensor:
        """Return what the group, or its `swiglu`, makes of the finished norm."""
        ...


@runtime_checkable
class GroupableLinear(Protocol):
    """A linear with weights of its own kind that can run together with others."""

    def grouped(self, others: Sequence[nn.Module]) -> LinearGroup | None:
        """Return the group of this linear and `others`, in this order; None if they do not go together."""
        ...


@dataclass(frozen=True)
class DenseGroup:
    """Linears with 16-bit weights."""

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]

    @property
    def first_read(self) -> Tensor:
        return self.weights[0]

    def __call__(self, x: Tensor, following: LinearGroup | None = None) -> Tensor:
        from vila_core.ops.linear import linear  # needs Triton

        del following
        return linear(x, self.weights, self.biases)

    def swiglu(self, x: Tensor, following: LinearGroup | None = None) -> Tensor:
        from vila_core.ops.linear import swiglu_linear
        from vila_core.ops.swiglu import swiglu

        if all(bias is None for bias in self.biases):
            return swiglu_linear(x, *self.weights)
        return swiglu(self(x, following))


@dataclass(frozen=True)
class SeparateLinears:
    """Linears that do not run together: each module runs alone."""

    linears: tuple[nn.Module, ...]

    @property
    def first_read(self) -> None:
        return None

    def __call__(self, x: Tensor, following: LinearGroup | None = None) -> Tensor:
        del following
        return torch.cat([linear(x) for linear in self.linears], dim=-1)

    def swiglu(self, x: Tensor, following: LinearGroup | None = None) -> Tensor:
        from vila_core.ops.swiglu import swiglu

        return swiglu(self(x, following))


def group(linears: Sequence[nn.Module]) -> LinearGroup:
    """Return linears of the same input as one group; the modules must outlive it."""
    first, *others = linears
    if type(first) is nn.Linear and all(type(other) is nn.Linear for other in others):
        dense = [linear for linear in linears if isinstance(linear, nn.Linear)]
        return DenseGroup(tuple(linear.weight for linear in dense), tuple(linear.bias for linear in dense))
    found = first.grouped(others) if isinstance(first, GroupableLinear) else None
    return SeparateLinears(tuple(linears)) if found is None else found
