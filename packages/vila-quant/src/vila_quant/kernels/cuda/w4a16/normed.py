"""Linears of one token that do the norms between them: add to the residual, and finish the norm of their input.

N outputs, K inputs

    h = residual + x W_1ᵀ,    y = rms_norm(h) W_2ᵀ = (h · weight) W_2ᵀ · scale / sqrt(mean(h²) + eps)

The first linear (`add`) writes h, `h · weight` and parts of the sum of h²; the next (`matmul`) applies the factor to
its result. A norm's weight is divided by its largest value, `scale`, so that h · weight does not overflow before h.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vila_core.ops.attention import SplitHeads
from vila_quant.kernels.cuda.w4a16.decode import Adding, DecodeConfig, Normed, decode, num_parts
from vila_quant.kernels.cuda.w4a16.dispatch import choose, launches_early


def _config(outputs: int, inputs: int, device: torch.device) -> DecodeConfig:
    config = choose(1, outputs, inputs, device)
    assert isinstance(config, DecodeConfig), "one token is for the decode kernel"
    return config


@torch.library.custom_op("vila_quant::w4a16_add", mutates_args=(), device_types="cuda")
def add(
    x: Tensor,
    packed: Tensor,
    residual: Tensor,
    norm_weight: Tensor,
    group_size: int,
    next_packed: Tensor | None,
    logs: Tensor | None = None,
    position: Tensor | None = None,
    head_dim: int = 0,
    window: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `h = residual + x Wᵀ` `[1, N]`, `h · norm_weight` `[1, N]` and parts of the sum of h² `[N / 16]`.

    Args:
        x: `[1, K]` contiguous, K a multiple of 128; with the arguments from `logs` on, `SplitHeads.parts`.
        packed: the packed weight.
        residual: `[1, N]` contiguous, computed at least two kernels before.
        norm_weight: `[N]`.
        group_size: of the weight.
        next_packed: what the next linear reads first.
        logs: see `SplitHeads`.
        position: see `SplitHeads`.
        head_dim: see `SplitHeads`.
        window: see `SplitHeads`.
    """
    config = _config(residual.shape[1], x.shape[1], x.device)
    h, scaled = torch.empty_like(residual), torch.empty_like(residual)
    squares = x.new_empty(num_parts(packed), dtype=torch.float32)
    adding = Adding(residual, norm_weight, scaled, squares)
    pdl = launches_early(x.device)
    heads = x
    if logs is not None and position is not None:
        heads = SplitHeads(x, logs, head_dim, position, window)
    decode(heads, packed, None, h, group_size, config, next_packed=next_packed, adding=adding, pdl=pdl)
    return h, scaled, squares


@add.register_fake
def _(x: Tensor, packed: Tensor, residual: Tensor, *others: object) -> tuple[Tensor, Tensor, Tensor]:
    del others
    return torch.empty_like(residual), torch.empty_like(residual), x.new_empty(num_parts(packed), dtype=torch.float32)


@torch.library.custom_op("vila_quant::w4a16_normed", mutates_args=(), device_types="cuda")
def matmul(
    x: Tensor,
    squares: Tensor,
    scale: float,
    eps: float,
    packed: Tensor,
    bias: Tensor | None,
    outputs: int,
    group_size: int,
    next_packed: Tensor | None,
    is_swiglu: bool = False,
) -> Tensor:
    """`x = h · weight` `[1, K]` -> `rms_norm(h) Wᵀ + bias`, or SwiGLU of gate and up, `[1, N]`.

    Args:
        x: contiguous, K a multiple of 128.
        squares: parts of the sum of h².
        scale: what the norm's weight was divided by.
        eps: of the norm.
        packed: the packed weight; of gate and up, one after the other, for SwiGLU.
        bias: `[N]`; None for SwiGLU.
        outputs: N.
        group_size: of the weight.
        next_packed: what the next linear reads first.
        is_swiglu: whether the result is `silu(gate) · up`.
    """
    config = _config(2 * outputs if is_swiglu else outputs, x.shape[1], x.device)
    config = replace(config, tiles=2) if is_swiglu else config
    y = x.new_empty(1, outputs)
    decode(
        x, packed, bias, y, group_size, config, next_packed=next_packed, swiglu=is_swiglu,
        normed=Normed(squares, scale, eps), pdl=launches_early(x.device),
    )  # fmt: skip
    return y


@matmul.register_fake
def _(
    x: Tensor,
    squares: Tensor,
    scale: float,
    eps: float,
    packed: Tensor,
    bias: Tensor | None,
    outputs: int,
    *others: object,
) -> Tensor:
    del squares, scale, eps, packed, bias, others
    return x.new_empty(1, outputs)
