"""LoRA's linears with fewer passes over memory than peft's own `forward`: products are added in place.

    y = x Wᵀ + bias + s (x Aᵀ) Bᵀ        dB = s dyᵀ (x Aᵀ)        dA = s (dy B)ᵀ x        dx = dy W + s (dy B) A

Linears that read the same x (q, k and v; gate and up) are computed together: x is multiplied once by all A, one below
the other, and dx is summed in place.

T tokens, I inputs, O outputs, r rank; `W [O, I]`, `A [r, I]`, `B [O, r]`
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn

from vila_core.language.decoder import MLP, Attention
from vila_train.compute.fp8 import product_dtype
from vila_train.compute.inputs import is_plain_lora, linears_of_one_input
from vila_train.compute.lora_group import LoraGroup, refresh_bf16_factors


def add_in_place(network: nn.Module) -> Mapping[nn.Module, LoraGroup]:
    """Replace the `forward` of LoRA's linears, but not of DoRA's; parameters and names stay.

    Call it when frozen weights are frozen, and linears in 8 bits.

    Returns:
        The linears that are computed together, by the first of each group.
    """
    groups: dict[nn.Module, LoraGroup] = {modules[0]: LoraGroup(modules) for modules in linears_of_one_input(network)}
    for module in network.modules():
        if isinstance(module, Linear) and is_plain_lora(module):
            group = groups.get(module)
            # A linear of a larger group is computed alone only under dropout.
            module.forward = partial(_forward, module, group if group and len(group.modules) == 1 else None)
        elif isinstance(module, Attention) and _has(groups, module.q_proj, 3):
            module.project = partial(_forward_together, groups[module.q_proj])
        elif isinstance(module, MLP) and _has(groups, module.gate_proj, 2):
            module.gate_and_up = partial(_forward_together, groups[module.gate_proj])
    for part in network.children():
        inside = set(part.modules())
        own = [group for first, group in groups.items() if first in inside]
        if own:
            part.register_forward_pre_hook(partial(_refresh, own))
    return groups


def _has(groups: Mapping[nn.Module, LoraGroup], first: nn.Module, size: int) -> bool:
    return first in groups and len(groups[first].modules) == size


def _refresh(groups: Sequence[LoraGroup], part: nn.Module, args: object) -> None:
    refresh_bf16_factors(groups)


def _forward(module: Linear, group: LoraGroup | None, x: Tensor) -> Tensor:
    """`[..., I]` -> `[..., O]`."""
    if group is not None and not group.drops:
        return _together(group, x)[0]
    (adapter,) = module.lora_A
    rows = x.flatten(0, -2)
    a, b = (cast("nn.Linear", factors[adapter]).weight for factors in (module.lora_A, module.lora_B))
    total = _LoraSum.apply(module.base_layer(rows), module.lora_dropout[adapter](rows), a, b, module.scaling[adapter])
    return cast("Tensor", total).view(*x.shape[:-1], -1)


def _forward_together(group: LoraGroup, x: Tensor) -> Sequence[Tensor]:
    """`[..., I]` -> `[..., O]` of each."""
    return [module(x) for module in group.modules] if group.drops else _together(group, x)


def _together(group: LoraGroup, x: Tensor) -> Sequence[Tensor]:
    outputs = cast("Sequence[Tensor]", _LoraLinears.apply(x.flatten(0, -2), group, *group.parameters()))
    return [y.view(*x.shape[:-1], -1) for y in outputs]


class _LoraLinears(torch.autograd.Function):
    """A group's linears of `x [T, I]`: `[T, O]` of each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: LoraGroup, *factors: Tensor) -> tuple[Tensor, ...]:
        rows = x.to(product_dtype(x))
        outputs, low = group.products(rows)
        ctx.save_for_backward(rows, low)
        ctx.group, ctx.input_dtype = group, x.dtype
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, low = ctx.saved_tensors
        grad_x, grad_factors = ctx.group.gradients(gradients, x, low, needs_input_grad=ctx.needs_input_grad[0])
        return None if grad_x is None else grad_x.to(ctx.input_dtype), None, *grad_factors


class _LoraSum(torch.autograd.Function):
    """`y + s x Aᵀ Bᵀ` of `y [T, O]`, which is overwritten and must not be a view, and `x [T, I]`."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        rows = x.to(y.dtype)
        low = rows @ a.to(y.dtype).t()  # [T, r]
        ctx.save_for_backward(rows, low, a, b)
        ctx.scale, ctx.input_dtype = scale, x.dtype
        ctx.mark_dirty(y)
        return y.addmm_(low, b.to(y.dtype).t(), alpha=scale)

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        (gradient,) = outputs
        x, low, a, b = ctx.saved_tensors
        grad_low = (gradient @ b.to(gradient.dtype)).mul_(ctx.scale)  # of x Aᵀ
        grad_a, grad_b = (grad_low.t() @ x).to(a.dtype), (gradient.t() @ low).to(b.dtype).mul_(ctx.scale)
        grad_x = (grad_low @ a.to(gradient.dtype)).to(ctx.input_dtype) if ctx.needs_input_grad[1] else None
        return gradient, grad_x, grad_a, grad_b, None
