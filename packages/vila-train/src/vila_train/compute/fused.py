"""Operations between the matrix products of a decoder block; `torch.compile` makes one kernel of each.

T tokens, D width, H heads, D_h head width, N width of the MLP
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from vila_core.language.rope import rotate


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`RMSNorm` of `[..., D]`, in the dtype of `x`."""
    return weight.to(x.dtype) * F.rms_norm(x, x.shape[-1:], None, eps)


def add_norm(x: Tensor, change: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return `x + change` and the norm of it."""
    total = x + change
    return total, norm(total, weight, eps)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """`silu(gate) · up`, `[..., N]`."""
    return F.silu(gate) * up


@dataclass(frozen=True)
class Fused:
    """The functions of this module, or compiled ones.

    Attributes:
        norm, add_norm, swiglu: as above.
        rotate: rotary embedding of `[B, H, T, D_h]`.
    """

    norm: Callable[[Tensor, Tensor, float], Tensor] = norm
    add_norm: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]] = add_norm
    swiglu: Callable[[Tensor, Tensor], Tensor] = swiglu
    rotate: Callable[[Tensor, Tensor, Tensor], Tensor] = rotate

    @classmethod
    def compiled(cls) -> "Fused":
        """Return compiled functions, for any number of tokens."""
        compile = partial(torch.compile, dynamic=True)
        return cls(compile(norm), compile(add_norm), compile(swiglu), compile(rotate))
