"""Linears that read the same input, run together: what a fused decode step is made of.

M tokens, N outputs, K inputs
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
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
    """Linears with 16-bit weights.

    Attributes:
        weights, biases: of each.
        joined: all weights side by side, of which `weights` are parts, and their biases; None if they lie apart.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]
    joined: tuple[Tensor, Tensor | None] | None = None

    @classmethod
    def of(cls, linears: Sequence[nn.Linear], *, join: bool) -> DenseGroup:
        """Return the group. With `join`, on a GPU, the parameters of several linears become parts of one tensor."""
        joined = _join(linears) if join and len(linears) > 1 else None
        return cls(tuple(linear.weight for linear in linears), tuple(linear.bias for linear in linears), joined)

    @property
    def first_read(self) -> Tensor:
        return self.weights[0] if self.joined is None else self.joined[0]

    def __call__(self, x: Tensor, following: LinearGroup | None = None) -> Tensor:
        from vila_core.ops.linear import MAX_TOKENS, linear  # needs Triton

        del following
        if self.joined is not None and len(x) > MAX_TOKENS:
            return linear(x, self.joined[:1], self.joined[1:])
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


@torch.no_grad()
def _join(linears: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None] | None:
    """Let the weights of `linears` lie side by side in one tensor: one product takes less time than several.

    Returns:
        the weights and biases of all; None if they must stay where they are.
    """
    weights = [linear.weight for linear in linears]
    biases = [parameter for linear in linears for name, parameter in linear.named_parameters() if name == "bias"]
    kinds = {(weight.device, weight.dtype, weight.shape[1]) for weight in weights}
    uses = {(parameter.requires_grad, parameter.is_inference()) for parameter in (*weights, *biases)}
    if len(kinds) > 1 or len(uses) > 1 or len(biases) not in (0, len(weights)):
        return None
    if weights[0].requires_grad or not weights[0].is_cuda:
        return None
    try:
        with torch.inference_mode(weights[0].is_inference()):  # what was made in this mode stays so
            return _side_by_side(weights), _side_by_side(biases) if biases else None
    except torch.OutOfMemoryError:
        return None


def _side_by_side(parameters: Sequence[Tensor]) -> Tensor:
    """Return one tensor of which the parameters are parts, one after another; it is made if they are not yet."""
    first = parameters[0]
    places = accumulate((parameter.nbytes for parameter in parameters), initial=first.data_ptr())
    are_neighbors = all(
        parameter.data_ptr() == place and parameter.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        for parameter, place in zip(parameters, places, strict=False)
    )
    rows = [len(parameter) for parameter in parameters]
    if are_neighbors and all(parameter.is_contiguous() for parameter in parameters):
        return first.detach().as_strided((sum(rows), *first.shape[1:]), first.stride())
    joined = torch.cat([parameter.detach() for parameter in parameters])
    for parameter, part in zip(parameters, joined.split(rows), strict=True):
        parameter.data = part
    return joined


def group(linears: Sequence[nn.Module], *, join: bool = False) -> LinearGroup:
    """Return linears of the same input as one group; the modules must outlive it.

    With `join`, 16-bit weights are moved next to one another, which nobody else may hold.
    """
    first, *others = linears
    if type(first) is nn.Linear and all(type(other) is nn.Linear for other in others):
        dense = [linear for linear in linears if isinstance(linear, nn.Linear)]
        return DenseGroup.of(dense, join=join)
    found = first.grouped(others) if isinstance(first, GroupableLinear) else None
    return SeparateLinears(tuple(linears)) if found is None else found
